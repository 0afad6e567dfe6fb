# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qubes-core-agent-networking, with the unit properties of the real one (4.4.2) and scripts of its own.

What the boot of a qube depends on is as in the real packages: sections and orders of the units, what is enabled and
how, what is a configuration file, when systemd is called by udev, and what its maintainer scripts do. The scripts are
written anew and do as much as a test can see; each takes notes of how it was called. Units and files of the real main
package (presets, NetworkManager's drop-in) are in this one too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# Each takes notes of its arguments; the last one is in /etc, so a configuration file of its package.
CONFFILE = "/etc/xen/scripts/vif-route-qubes"
UDEV_RULE = "/etc/udev/rules.d/99-qubes-network.rules"
HARDENING = "/etc/sysctl.d/81-qubes.conf.optional"
SCRIPTS = ("/usr/lib/qubes/setup-ip", "/usr/lib/qubes/qubes-setup-dnat-to-ns", CONFFILE)
NOTES = "/run/core-agent-{name}"
USER_SCRIPT = "/rw/config/qubes-firewall-user-script"
FIREWALL_NOTES = "/run/core-agent-firewall"

# A unit that loads rules before the network, once.
_ONCE = """\
[Unit]
Description=Stand-in: {what}
{after}Before=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/init/stand-in {word}

[Install]
RequiredBy=network-pre.target
"""
UNITS = {
    "qubes-antispoof.service": _ONCE.format(what="anti-spoofing rules", after="", word="antispoof"),
    "qubes-iptables.service": _ONCE.format(
        what="base firewall",
        after="Requires=qubes-antispoof.service\nAfter=qubes-antispoof.service\n",
        word="iptables",
    ),
    "qubes-firewall.service": """\
[Unit]
Description=Stand-in: firewall of the qubes
ConditionPathExists=/var/run/qubes-service/qubes-firewall
After=qubes-iptables.service
Before=qubes-network.service

[Service]
Type=notify-reload
ExecStart=/usr/bin/qubes-firewall
Restart=on-failure
RestartSec=5s

[Install]
WantedBy=multi-user.target
""",
    "qubes-network.service": """\
[Unit]
Description=Stand-in: forwarding
ConditionPathExists=/var/run/qubes-service/qubes-network
Before=network.target
After=network-pre.target qubes-iptables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/init/stand-in network
ExecStop=/usr/lib/qubes/init/stand-in network-stop

[Install]
WantedBy=multi-user.target
""",
    "qubes-network-uplink.service": """\
[Unit]
Description=Stand-in: wait for the uplink
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/init/stand-in uplink-wait

[Install]
WantedBy=multi-user.target
""",
    "qubes-network-uplink@.service": """\
[Unit]
Description=Stand-in: uplink (%i)
After=network-pre.target
Requires=network-pre.target
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/setup-ip add "%i"
ExecStop=/usr/lib/qubes/setup-ip remove "%i"
""",
}
# Of the main package, which no test has otherwise.
NETWORK_MANAGER = """\
[Unit]
ConditionPathExists=/var/run/qubes-service/network-manager
After=qubes-bind-dirs.service
After=qubes-sysinit.service
After=qubes-network-uplink.service

[Service]
ExecStartPre=/usr/lib/qubes/network-manager-prepare-conf-dir
"""
WAIT_ONLINE = "[Unit]\nConditionPathExists=/var/run/qubes-service/network-manager\n"
PRESET = """\
enable qubes-network.service
enable qubes-network-uplink.service
enable qubes-firewall.service
enable qubes-antispoof.service
enable qubes-iptables.service
enable NetworkManager.service
disable firewalld.service
"""
# As far as a veth can play the driver of Xen: no bus to go by.
RULES = """\
KERNEL=="eth*", ACTION=="add", ENV{ID_NET_DRIVER}=="vif", \
RUN+="/usr/bin/systemctl restart --job-mode=replace qubes-network-uplink@%k.service"
KERNEL=="eth*", ACTION=="remove", ENV{ID_NET_DRIVER}=="vif", \
RUN+="/usr/bin/systemctl stop --job-mode=replace qubes-network-uplink@%k.service"
"""
# The settings that the real file makes, those that a test looks at.
HARDENED = {
    "net.ipv4.conf.*.accept_source_route": "0",
    "net.ipv4.conf.*.accept_redirects": "0",
    "net.ipv4.conf.*.secure_redirects": "0",
    "net.ipv4.conf.*.send_redirects": "0",
    "net.ipv4.conf.*.drop_unicast_in_l2_multicast": "1",
    "net.ipv6.conf.*.accept_source_route": "-1",
    "net.ipv6.conf.*.accept_redirects": "0",
    "net.ipv6.conf.*.accept_ra": "0",
    "net.ipv6.conf.*.accept_dad": "0",
    "net.ipv6.conf.*.autoconf": "0",
    "net.ipv6.conf.*.drop_unicast_in_l2_multicast": "1",
}
NOTE = """\
#!/bin/sh
# {version}
echo "$@" >>/run/core-agent-{name}
"""
# One look at QubesDB for all keys: the client is slow.
SETUP_IP = """\
entries=$(qubesdb-multiread /qubes-) || exit 0
value() { printf '%s\\n' "$entries" | sed -n "s|^/qubes-$1 = ||p"; }
if [ "$1" = remove ]; then
    ip link set "$2" down 2>/dev/null || :
    rm -f "/etc/NetworkManager/system-connections/qubes-uplink-$2"
    exit 0
fi
[ "$1" = add ] && [ -e "/sys/class/net/$2" ] || exit 1
ip=$(value ip) gateway=$(value gateway)
[ -n "$ip" ] || exit 0
if [ -e /run/qubes-service/network-manager ] && [ -e /usr/bin/nmcli ]; then
    ip link set dev "$2" group 1
    profile=/etc/NetworkManager/system-connections/qubes-uplink-$2
    mac=$(tr -d : <"/sys/class/net/$2/address")
    printf '[connection]\\nid=VM uplink %s\\nuuid=de85f79b-8c3d-405f-a652-%s\\n' "$2" "$mac" >"$profile"
    printf 'type=ethernet\\ninterface-name=%s\\n\\n' "$2" >>"$profile"
    printf '[ipv4]\\nmethod=manual\\naddress1=%s/32,%s\\n\\n[ipv6]\\nmethod=ignore\\n' "$ip" "$gateway" >>"$profile"
    chmod 600 "$profile"
    nmcli connection load "$profile" || :
else
    ip address replace "$ip/32" dev "$2"
    ip neighbour replace "$gateway" dev "$2" lladdr fe:ff:ff:ff:ff:ff nud permanent
    ip link set dev "$2" group 1 up
    ip route replace "$gateway" dev "$2" scope link
    ip route replace default via "$gateway" dev "$2" onlink
    rm -f /etc/resolv.conf
    printf 'nameserver %s\\nnameserver %s\\n' "$(value primary-dns)" "$(value secondary-dns)" >/etc/resolv.conf
fi
"""
INIT = """\
#!/bin/sh
set -e
echo "$1" >>/run/core-agent-units
case $1 in
antispoof) nft -f /etc/qubes/qubes-antispoof.nft ;;
network) echo 1 >/proc/sys/net/ipv4/ip_forward ;;
network-stop) echo 0 >/proc/sys/net/ipv4/ip_forward ;;
uplink-wait)
    mac=$(qubesdb-multiread /qubes-mac | sed 's/.* = //')
    [ -n "$mac" ] || exit 0
    name=$(ip -o link | grep -i "$mac" | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/')
    [ -z "$name" ] || systemctl start "qubes-network-uplink@$name.service"
    ;;
esac
"""
ANTISPOOF = """\
table ip qubes {
    set allowed { type ifname . ipv4_addr; }
    set downstream { type ipv4_addr; }
    chain antispoof { iifname . ip saddr @allowed accept; counter drop; }
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifgroup 2 goto antispoof
        ip saddr @downstream counter drop
    }
}
"""
PREPARE = """\
#!/bin/sh
sed -i -e 's/^#*unmanaged-devices=.*/unmanaged-devices=mac:fe:ff:ff:ff:ff:ff/' /etc/NetworkManager/NetworkManager.conf
"""
FIREWALL = f'''\
#!/usr/bin/python3
import os, signal, socket, subprocess, time

NFT = "".join("""
table %s qubes-firewall {{
    set dns-addr {{ type ipv%s_addr; }}
    chain qubes-forward {{ }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        meta iifname != "vif*" accept
        jump qubes-forward
        meta iifname "vif*" accept
    }}
}}
""" % family for family in (("ip", 4), ("ip6", 6)))

def note(text):
    with open("{FIREWALL_NOTES}", "a") as file:
        print(text, file=file)

def say(*lines):
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\\n".join(lines).encode(), path.replace("@", "\\0", 1))

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGTERM))
# One that was killed has left its tables, and in them the rules of users.
anew = "".join("%s table %s qubes-firewall;" % (do, of) for of in ("ip", "ip6") for do in ("add", "delete"))
subprocess.run(["nft", "-f", "-"], input=anew + NFT, text=True, check=True)
note("table")
folders = ["/etc/qubes/qubes-firewall.d"]
persists = os.path.exists("/run/qubes-service/custom-persist")
if not persists:
    folders.append("/rw/config/qubes-firewall.d")
there = [folder for folder in folders if os.path.isdir(folder)]
scripts = [os.path.join(folder, name) for folder in there for name in sorted(os.listdir(folder))]
if not persists:
    scripts.append("{USER_SCRIPT}")
for script in scripts:
    if os.access(script, os.X_OK):
        subprocess.run([script])
        note("script")
note("ready")
say("READY=1")
while True:
    if signal.sigwait((signal.SIGHUP, signal.SIGTERM)) == signal.SIGTERM:
        break
    say("RELOADING=1", "MONOTONIC_USEC=%d" % (time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6))
    note("reload")
    say("READY=1")
note("end")
subprocess.run(["nft", "delete table ip qubes-firewall; delete table ip6 qubes-firewall"])
'''
ENABLED = [unit for unit in UNITS if "@" not in unit]
# What debhelper makes of such units at compatibility level 10, and the main package's presets.
POSTINST = f"""\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
for unit in {" ".join(ENABLED)}; do
    if deb-systemd-helper --quiet was-enabled "$unit"; then
        deb-systemd-helper enable "$unit" >/dev/null || :
    else
        deb-systemd-helper update-state "$unit" >/dev/null || :
    fi
done
for unit in {" ".join(ENABLED)}; do
    systemctl --no-reload preset "$unit" >/dev/null 2>&1 || :
done
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || :
    deb-systemd-invoke start {" ".join(ENABLED)} >/dev/null || :
fi
"""
PRERM = f"""\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop {" ".join(ENABLED)} >/dev/null || :
fi
"""
POSTRM = f"""\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    deb-systemd-helper purge {" ".join(ENABLED)} >/dev/null || :
fi
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || :
fi
"""


def fill(root: Path, version: str) -> None:
    """Put the package's files below a folder, its maintainer scripts included.

    Args:
        root: an empty folder.
        version: what its scripts say they are.
    """
    units = root / "lib/systemd/system"
    for name, text in UNITS.items():
        put(units / name, text)
    put(units / "NetworkManager.service.d/30_qubes.conf", NETWORK_MANAGER)
    put(units / "NetworkManager-wait-online.service.d/30_qubes.conf", WAIT_ONLINE)
    put(root / "lib/systemd/system-preset/75-qubes-vm.preset", PRESET)
    put(root / "usr/lib/systemd/resolved.conf.d/30_resolved-no-mdns-or-llmnr.conf", "[Resolve]\nMulticastDNS=no\n")
    put(root / UDEV_RULE[1:], RULES)
    put(root / HARDENING[1:], "".join(f"{key} = {value}\n" for key, value in HARDENED.items()))
    put(root / "etc/qubes/qubes-antispoof.nft", ANTISPOOF)
    bodies = {SCRIPTS[0]: SETUP_IP}
    for script in SCRIPTS:
        put(root / script[1:], NOTE.format(name=Path(script).name, version=version) + bodies.get(script, ""), 0o755)
    put(root / "usr/lib/qubes/init/stand-in", INIT, 0o755)
    put(root / "usr/lib/qubes/network-manager-prepare-conf-dir", PREPARE, 0o755)
    put(root / "usr/bin/qubes-firewall", FIREWALL, 0o755)
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        put(root / "DEBIAN" / name, text, 0o755)
    conffiles = (CONFFILE, UDEV_RULE, HARDENING, "/etc/qubes/qubes-antispoof.nft")
    put(root / "DEBIAN/conffiles", "".join(f"{path}\n" for path in conffiles))


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def parses(script: Path) -> None:
    """Fail unless a shell takes a script."""
    subprocess.run(["sh", "-n", str(script)], check=True)
