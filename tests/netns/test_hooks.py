# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's hooks, sysctl.d and the MTU: what else belongs to bringing up an uplink, and what must be left alone."""

from __future__ import annotations

import json
import signal

import pytest

from qubes_guestnet.core.hooks import HOOKS
from qubes_guestnet.lab.daemons import without_host_link
from tests.support.eventually import eventually, never
from tests.support.needs import needs
from tests.support.qubes.appvm import ENTRIES, ENTRIES6, GATEWAY6, IP, IP6, MAC, AppVm

HOOK, LEGACY = HOOKS
LOG = "/rw/hook.log"
PROVIDER = {**ENTRIES, "/qubes-netvm-network": "10.137.0.0"}
RECORD = f"""#!/bin/sh
echo "$0 $(ip -o -4 address show dev eth0 | grep -o '10[0-9.]*/32') $(env | cut -d= -f1 | sort | tr '\\n' ',')" >> {LOG}
"""


def hook(appvm: AppVm, path: str = HOOK, text: str = RECORD, mode: int = 0o755) -> None:
    appvm.qube.write(path, text)
    appvm.qube.path(path).chmod(mode)


def runs(appvm: AppVm) -> list[list[str]]:
    return [line.split() for line in appvm.qube.read(LOG).splitlines()]


@pytest.mark.behaviour("B14")
def test_a_hook_runs_once_after_each_real_change() -> None:
    appvm = AppVm(PROVIDER)
    hook(appvm)
    appvm.agent()
    eventually(lambda: len(runs(appvm)) == 1, trouble=appvm.log)
    assert runs(appvm)[0][:2] == [HOOK, f"{IP}/32"], "after the configuration"
    # What a shell sets, and the mark by which a program that takes too long is found with all that it started (B119).
    known = {"HOME", "LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_", "QUBES_GUESTNET_RUN"}
    assert set(runs(appvm)[0][2].strip(",").split(",")) <= known
    appvm.write("/qubes-ip", "10.137.0.99")
    eventually(lambda: len(runs(appvm)) == 2, trouble=appvm.log)
    assert runs(appvm)[1][1] == "10.137.0.99/32"
    # What another program does is no change, though the agent repairs it; nor is a restart of the agent.
    appvm.ip("route", "del", "default")
    eventually(lambda: appvm.routes(4), what="the route is back")
    agent = appvm.qube.agent
    assert agent is not None
    agent.signal(signal.SIGHUP)
    agent.stop()
    appvm.agent()
    never(lambda: len(runs(appvm)) > 2, 0.5)
    appvm.unplug()
    appvm.plug()
    eventually(lambda: len(runs(appvm)) == 3, trouble=appvm.log)


@pytest.mark.behaviour("B14")
def test_only_in_a_qube_that_provides_network_and_only_with_the_executable_bit() -> None:
    appvm = AppVm()
    hook(appvm)
    hook(appvm, LEGACY, mode=0o644)
    appvm.agent()
    appvm.soon_configured()
    never(lambda: runs(appvm), 0.3)
    appvm.write("/qubes-netvm-network", "10.137.0.0")
    eventually(lambda: [words[0] for words in runs(appvm)] == [HOOK], trouble=appvm.log)


@pytest.mark.behaviour("B14")
def test_both_names_and_one_file_with_two_names() -> None:
    appvm = AppVm(PROVIDER)
    hook(appvm)
    hook(appvm, LEGACY)
    appvm.qube.guestnet("uplink", "add", "eth0")
    eventually(lambda: [words[0] for words in runs(appvm)] == [HOOK, LEGACY])
    appvm.qube.path(LEGACY).unlink()
    appvm.qube.path(LEGACY).symlink_to("qubes-ip-change-hook")
    appvm.write("/qubes-ip", "10.137.0.99")
    appvm.qube.guestnet("uplink", "add", "eth0")
    eventually(lambda: [words[0] for words in runs(appvm)] == [HOOK, LEGACY, HOOK])


@pytest.mark.behaviour("B14")
def test_a_hook_that_fails_or_hangs_harms_nothing() -> None:
    appvm = AppVm(PROVIDER)
    hook(appvm, text="#!/bin/sh\necho sorry >&2\nexit 3\n")
    appvm.agent()
    appvm.soon_configured()
    eventually(lambda: appvm.said("failed with 3: sorry") == 1, trouble=appvm.log)
    hook(appvm, text=f"#!/bin/sh\necho $$ > {LOG}\nexec sleep 1000\n")
    appvm.write("/qubes-ip", "10.137.0.99")
    eventually(lambda: runs(appvm), trouble=appvm.log)
    appvm.write("/qubes-ip", "10.137.0.98")
    appvm.soon_configured(ip="10.137.0.98/32")
    assert appvm.qube.agent is not None
    assert appvm.qube.agent.stop() == 0, "nor does the agent wait for it"


@pytest.mark.behaviour("B14")
def test_the_time_limit_ends_a_hook_and_its_children() -> None:
    appvm = AppVm(PROVIDER)
    hook(appvm, text=f"#!/bin/sh\nsleep 1000 &\necho $! > {LOG}\nwait\n")
    code = f"from qubes_guestnet.system import hooks; hooks.start(({HOOK!r},), 1.0)"
    appvm.qube.run(appvm.program()[0], "-c", code)
    eventually(lambda: runs(appvm))
    child = runs(appvm)[0][0]
    eventually(lambda: not appvm.qube.path(f"/proc/{child}").exists(), what="ended by the limit")


@pytest.mark.behaviour("B14")
def test_under_systemd_a_hook_is_a_unit_of_its_own() -> None:
    appvm = AppVm(PROVIDER)
    hook(appvm)
    appvm.qube.run("mkdir", "-p", "/run/systemd/system")
    appvm.qube.write("/run/lab/systemd-run", f'#!/bin/sh\nprintf "%s\\n" "$@" > {LOG}\n')
    appvm.qube.path("/run/lab/systemd-run").chmod(0o755)
    appvm.qube.run("mount", "--bind", "/run/lab/systemd-run", "/usr/bin/systemd-run")
    appvm.qube.guestnet("uplink", "add", "eth0")
    words = appvm.qube.read(LOG).splitlines()
    assert words[-2:] == ["--", HOOK]
    assert {"--collect", "--no-block", "--property=TimeoutStartSec=60"} <= set(words)


@pytest.mark.behaviour("B119")
def test_under_systemd_a_script_without_its_first_line_runs_and_its_daemon_stays() -> None:
    appvm = AppVm(PROVIDER)
    appvm.qube.write(HOOK, "sleep 1000 &\n")
    appvm.qube.path(HOOK).chmod(0o755)
    appvm.qube.run("mkdir", "-p", "/run/systemd/system")
    appvm.qube.write("/run/lab/systemd-run", f'#!/bin/sh\nprintf "%s\\n" "$@" > {LOG}\n')
    appvm.qube.path("/run/lab/systemd-run").chmod(0o755)
    appvm.qube.run("mount", "--bind", "/run/lab/systemd-run", "/usr/bin/systemd-run")
    appvm.qube.guestnet("uplink", "add", "eth0")
    words = appvm.qube.read(LOG).splitlines()
    assert words[-3:] == ["--", "/bin/sh", HOOK]
    # A unit ends with its main process, and kills what is left in it, but for one that "forks" (systemd.service(5)).
    assert {"--property=Type=forking", "--property=GuessMainPID=no"} <= set(words)


@pytest.mark.behaviour("B17")
def test_sysctl_d_counts_before_the_link_is_up_and_the_users_file_wins() -> None:
    appvm = AppVm(ENTRIES6)
    without_host_link(appvm.qube, "/etc/sysctl.d")
    appvm.qube.write("/run/sysctl.d/80-package.conf",
                     "net.ipv6.conf.eth0.addr_gen_mode=1\nnet.ipv4.conf.eth0.arp_announce=1\n")  # fmt: skip
    appvm.qube.write("/etc/sysctl.d/90-user.conf", "net.ipv4.conf.eth0.arp_announce=2\n")
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.check(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    link_local = appvm.oracle.ip("-6", "address", "show", "dev", "eth0", "scope", "link")
    assert [entry for entry in link_local if entry.get("addr_info")] == [], "too late: the kernel has made its address"
    assert appvm.qube.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_announce").stdout.strip() == "2"


@pytest.mark.behaviour("B17")
def test_without_systemd_sysctl_the_uplink_works_all_the_same() -> None:
    appvm = AppVm()
    appvm.qube.run("mount", "--bind", "/dev/null", "/lib/systemd/systemd-sysctl")
    done = appvm.qube.guestnet("uplink", "add", "eth0")
    assert done.stderr == ""
    appvm.check()


@pytest.mark.behaviour("B16")
def test_offloads_and_queues_stay_as_the_driver_made_them() -> None:
    needs("ethtool")
    appvm = AppVm(ENTRIES6)

    def features() -> tuple[str, object, object]:
        link = appvm.oracle.link("eth0")
        assert link is not None
        kept = ("txqlen", "num_tx_queues", "num_rx_queues", "gso_max_size", "gso_max_segs", "mtu", "address")
        shown = json.dumps([link.get(name) for name in kept])
        return appvm.oracle.run("ethtool", "-k", "eth0").stdout, appvm.oracle.run("ethtool", "-l", "eth0").stdout, shown

    before = features()
    appvm.agent()
    appvm.soon_configured(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    appvm.write("/qubes-ip", "10.137.0.99")
    appvm.soon_configured(ip="10.137.0.99/32", ip6=f"{IP6}/128", gateway6=GATEWAY6)
    assert features() == before


def mtu(appvm: AppVm) -> int:
    return int((appvm.oracle.link("eth0") or {})["mtu"])


@pytest.mark.behaviour("B109")
def test_the_mtu_from_dom0() -> None:
    appvm = AppVm({**ENTRIES6, "/vm-config/net-mtu": "1420"})
    appvm.agent()
    appvm.soon_configured(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    assert mtu(appvm) == 1420
    appvm.write("/vm-config/net-mtu", "1492")
    eventually(lambda: mtu(appvm) == 1492, trouble=appvm.log)
    appvm.write(f"/net-config/{MAC}/mtu", "1400")
    eventually(lambda: mtu(appvm) == 1400, trouble=appvm.log)
    for untrusted in ("1279", "70000", "1400\n", "-1", "0x5dc", "99999999999999999999"):
        said = appvm.said("/vm-config/net-mtu")
        appvm.remove(f"/net-config/{MAC}/mtu")
        appvm.write("/vm-config/net-mtu", untrusted)
        eventually(lambda: appvm.said("/vm-config/net-mtu") > said, trouble=appvm.log)  # noqa: B023
    assert mtu(appvm) in (1400, 1492)
    appvm.check(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    appvm.remove("/vm-config/net-mtu")
    eventually(lambda: appvm.said("all errors cleared"), trouble=appvm.log)
    assert mtu(appvm) in (1400, 1492), "the value before is unknown"


@pytest.mark.behaviour("B109")
def test_without_a_key_the_mtu_is_left_alone() -> None:
    appvm = AppVm()
    appvm.ip("link", "set", "eth0", "mtu", "1333")
    appvm.agent()
    appvm.soon_configured()
    assert mtu(appvm) == 1333


@pytest.mark.behaviour("B15")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_disable_default_route_keeps_the_way_to_the_gateway(style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag("disable-default-route")
    appvm.qube.set_flag("guestnet-gateway-route", style == "gateway")
    appvm.agent()
    appvm.soon_configured(style=style, default=False, ip6=f"{IP6}/128", gateway6=GATEWAY6)
