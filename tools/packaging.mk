# SPDX-License-Identifier: GPL-2.0-or-later
# Installation, and the packages. Only `make install` knows where each shared file goes; debian/rules and
# rpm/qubes-guestnet.spec.in call its part `install-files` and leave the Python modules to their own tools.
DESTDIR ?=
PREFIX ?= /usr
SYSTEM_PYTHON ?= /usr/bin/python3
BINDIR ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/qubes-guestnet
DATADIR ?= $(PREFIX)/share/qubes-guestnet
SYSTEMDDIR ?= $(PREFIX)/lib/systemd
UDEVDIR ?= $(PREFIX)/lib/udev
SYSCTLDIR ?= $(PREFIX)/lib/sysctl.d
# iproute2 older than 6.5 (Debian 12) reads the folder in /etc only; newer ones read both.
RT_PROTOS_DIR ?= $(PREFIX)/share/iproute2/rt_protos.d
MANDIR ?= $(PREFIX)/share/man
BASH_COMPLETIONS ?= $(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS ?= $(PREFIX)/share/fish/vendor_completions.d
# The folder in which the system's Python looks for packages of the distribution (Debian: dist-packages, not below
# /usr/local).
PYTHON_SITE ?= $(shell $(SYSTEM_PYTHON) -c 'import sysconfig as s; \
	print(s.get_path("purelib", "deb_system" if "deb_system" in s.get_scheme_names() else s.get_default_scheme()))')
# Where it looks for those of others; the launcher names these folders in place of `site`. Fedora's default scheme is
# below /usr/local unless an rpm is built, and its own packages' is rpm_prefix.
PYTHON_FOLDERS ?= $(shell $(SYSTEM_PYTHON) -c 'import sysconfig as s; \
	scheme = next((e for e in ("deb_system", "rpm_prefix") if e in s.get_scheme_names()), s.get_default_scheme()); \
	print(*dict.fromkeys((s.get_path("purelib", scheme), s.get_path("platlib", scheme))))')
FOLDERS = ($(foreach folder,$(PYTHON_SITE) $(filter-out $(PYTHON_SITE),$(PYTHON_FOLDERS)),"$(folder)",))
BUILD := build

.PHONY: install install-files install-python deb rpm test-system

install: install-python install-files ## into $DESTDIR; PREFIX, PYTHON_SITE and more: see tools/packaging.mk

install-python:
	install -d "$(DESTDIR)$(PYTHON_SITE)"
	find qubes_guestnet \( -name '*.py' -o -name py.typed -o -name '*.toml' \) -exec sh -c 'for file; do \
		install -D -m 0644 "$$file" "$(DESTDIR)$(PYTHON_SITE)/$$file" || exit; done' sh {} +
	$(SYSTEM_PYTHON) -m compileall -q -s "$(DESTDIR)" "$(DESTDIR)$(PYTHON_SITE)/qubes_guestnet"

install-files:
	install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(LIBEXECDIR)"
	sed -e '1s|^#!/usr/bin/python3|#!$(SYSTEM_PYTHON)|' -e 's|^FOLDERS = .*|FOLDERS = $(FOLDERS)|' bin/qubes-guestnet >"$(DESTDIR)$(BINDIR)/qubes-guestnet"
	chmod 0755 "$(DESTDIR)$(BINDIR)/qubes-guestnet"
	cd systemd && for script in setup-ip qubes-setup-dnat-to-ns vif-route-qubes qubes-firewall; do \
		install -m 0755 "$$script" "$(DESTDIR)$(LIBEXECDIR)" && \
		sed -i 's|/usr/bin/qubes-guestnet|$(BINDIR)/qubes-guestnet|' "$(DESTDIR)$(LIBEXECDIR)/$$script" || exit; done
	cd systemd && for unit in *.service *.socket *.service.d/*.conf; do \
		install -D -m 0644 "$$unit" "$(DESTDIR)$(SYSTEMDDIR)/system/$$unit" && \
		sed -i -e 's|/usr/bin/qubes-guestnet|$(BINDIR)/qubes-guestnet|' -e 's|=/usr/bin/python3|=$(SYSTEM_PYTHON)|' \
			"$(DESTDIR)$(SYSTEMDDIR)/system/$$unit" || exit; done
	install -d "$(DESTDIR)$(SYSTEMDDIR)/system/network-pre.target.requires"
	ln -sf ../qubes-guestnet-rules.service "$(DESTDIR)$(SYSTEMDDIR)/system/network-pre.target.requires/"
	install -D -m 0644 -t "$(DESTDIR)$(DATADIR)/units" systemd/alone/*.service
	install -D -m 0755 -t "$(DESTDIR)$(SYSTEMDDIR)/system-generators" systemd/qubes-guestnet-generator
	sed -i 's|/usr/share/qubes-guestnet|$(DATADIR)|' "$(DESTDIR)$(SYSTEMDDIR)/system-generators/qubes-guestnet-generator"
	install -D -m 0644 config/sysctl/harden-network-interfaces.conf \
		"$(DESTDIR)$(DATADIR)/harden-network-interfaces.conf"
	install -D -m 0644 -t "$(DESTDIR)$(SYSTEMDDIR)/system-preset" systemd/75-qubes-guestnet.preset
	install -D -m 0644 -t "$(DESTDIR)$(SYSTEMDDIR)/network" systemd/80-qubes-guestnet.link
	install -D -m 0644 -t "$(DESTDIR)$(UDEVDIR)/rules.d" systemd/81-qubes-guestnet.rules
	install -D -m 0644 -t "$(DESTDIR)$(SYSCTLDIR)" systemd/80-qubes-guestnet.conf
	install -D -m 0644 -t "$(DESTDIR)$(PREFIX)/lib/NetworkManager/conf.d" config/NetworkManager/conf.d/*.conf
	cd config && for script in NetworkManager/dispatcher.d/*; do \
		install -D -m 0755 "$$script" "$(DESTDIR)$(PREFIX)/lib/$$script" && \
		sed -i 's|/usr/bin/qubes-guestnet|$(BINDIR)/qubes-guestnet|' "$(DESTDIR)$(PREFIX)/lib/$$script" || exit; done
	install -D -m 0644 -t "$(DESTDIR)$(PREFIX)/lib/systemd/resolved.conf.d" config/systemd/resolved.conf.d/*.conf
	install -D -m 0644 systemd/rt_protos.conf "$(DESTDIR)$(RT_PROTOS_DIR)/qubes-guestnet.conf"
	install -D -m 0644 -t "$(DESTDIR)$(MANDIR)/man8" docs/man/qubes-guestnet.8
	install -D -m 0644 completions/qubes-guestnet.bash "$(DESTDIR)$(BASH_COMPLETIONS)/qubes-guestnet"
	install -D -m 0644 -t "$(DESTDIR)$(ZSH_COMPLETIONS)" completions/_qubes-guestnet
	install -D -m 0644 -t "$(DESTDIR)$(FISH_COMPLETIONS)" completions/qubes-guestnet.fish

deb: ## the Debian package, in build/deb
	@tools/setup packages
	tools/build-deb "$(BUILD)/deb"

rpm: ## the rpm, in build/rpm; what Fedora's macros do comes from rpm/debian-macros where they are missing
	@tools/setup packages
	tools/build-rpm "$(BUILD)/rpm"

test-system: ## the packages: built, compared, installed and booted under systemd-nspawn (as root)
	@tools/setup system
	$(VENV)/python -m pytest -q tests/system
