# SPDX-License-Identifier: GPL-2.0-or-later
"""The real NetworkManager as the owner of the uplink, in a qube where the user switched it on."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qubes_guestnet.lab import probes
from qubes_guestnet.lab.daemons import Daemons
from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import (
    BACKEND_MAC,
    DNS,
    DNS2,
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    GATEWAY_FLAG,
    IP,
    IP6,
    MAC,
    RESOLV_CONF,
    VIF,
    AppVm,
    words_of,
)

FLAG = "network-manager"
UUID = "de85f79b-8c3d-405f-a652-00163e5e6c05"
NAME = "VM uplink eth0"
FOLDER = "/etc/NetworkManager/system-connections"
PROFILE = f"{FOLDER}/qubes-uplink-eth0"


def start(entries: dict[str, str] | None = ENTRIES6, **named: bool) -> tuple[AppVm, Daemons]:
    """A qube with the flag, a bus, and NetworkManager ready to be started."""
    appvm = AppVm(entries, **named)
    appvm.qube.set_flag(FLAG)
    daemons = Daemons(appvm.qube)
    daemons.prepare_networkmanager()
    daemons.dbus()
    return appvm, daemons


def routes(appvm: AppVm, family: int = 4) -> list[str]:
    """Routes out of eth0 that other programs made, in words."""
    found = [route for route in appvm.oracle.routes(family, "eth0") if route["protocol"] != "kernel"]
    return sorted(words_of(route) for route in found)


def is_managed(
    appvm: AppVm, daemons: Daemons, *, ip: str = IP, style: str = "device", default: bool = True, ipv6: bool = True
) -> bool:
    """NetworkManager has our profile in force, and the interface what it asks for. Asserts, for `eventually`."""
    assert daemons.device("GENERAL.CON-UUID") == UUID
    assert daemons.device("GENERAL.STATE").startswith("100"), daemons.device("GENERAL.STATE")
    assert appvm.oracle.addresses("eth0") == {f"{ip}/32", *([f"{IP6}/128"] if ipv6 else [])}
    wanted = [f"{GATEWAY} scope link"] if style == "gateway" or not default else []
    wanted += {"gateway": [f"default via {GATEWAY}"], "device": ["default scope link"]}[style] if default else []
    assert routes(appvm) == sorted(wanted)
    assert routes(appvm, 6) == (sorted([GATEWAY6, *([f"default via {GATEWAY6}"] if default else [])]) if ipv6 else [])
    entries = appvm.oracle.neighbours("eth0")
    assert entries == dict.fromkeys([GATEWAY, *([GATEWAY6] if ipv6 else [])], BACKEND_MAC)
    link = appvm.oracle.link("eth0")
    assert link is not None
    assert link["group"] in ("1", "uplink")
    return True


def soon_managed(appvm: AppVm, daemons: Daemons, **wanted: object) -> None:
    def trouble() -> str:
        daemon = daemons.running.get("networkmanager")
        return appvm.log() + "\n" + (daemon.tail(3000) if daemon else "")

    eventually(lambda: is_managed(appvm, daemons, **wanted), 20, "managed", trouble)  # type: ignore[arg-type]


def passes(appvm: AppVm) -> Callable[[], bool]:
    """Have the agent make a pass; the result says when it has: it notices a key of dom0's that is not valid."""
    said = appvm.said("/qubes-netmask")
    appvm.write("/qubes-netmask", "999")
    return lambda: appvm.said("/qubes-netmask") > said


@pytest.mark.behaviour("B25", "B26")
def test_the_profile_is_there_before_networkmanager_starts() -> None:
    appvm, daemons = start()
    with appvm.provider.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as spy:
        spy.bind((VIF, 0x0800))
        spy.setblocking(False)
        appvm.agent()
        file = appvm.qube.path(PROFILE).stat()
        assert (stat.S_IMODE(file.st_mode), file.st_uid) == (0o600, appvm.qube.path("/etc/hostname").stat().st_uid)
        assert appvm.oracle.addresses("eth0") == set(), "two do not configure one device"
        assert appvm.servers() == [DNS, DNS2]
        daemons.networkmanager()
        soon_managed(appvm, daemons)
        assert appvm.servers() == [DNS, DNS2]
        assert daemons.nmcli("-g", "UUID", "connection", "show", "--active").splitlines().count(UUID) == 1
        frames = received(spy)
    assert [frame for frame in frames if frame[23] == 17 and frame[36:38] in (b"\0\x43", b"\0\x44")] == [], "DHCP"


def received(spy: socket.socket) -> list[bytes]:
    """All frames that have come so far."""
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(spy.recv(2048))
    return frames


@pytest.mark.behaviour("B25")
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_networkmanager_runs_already(style: str) -> None:
    appvm, daemons = start()
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons, style=style)


@pytest.mark.behaviour("B25")
def test_networkmanager_is_just_starting_and_restarts() -> None:
    appvm, daemons = start()
    daemons.networkmanager(wait=False)
    appvm.agent()
    soon_managed(appvm, daemons)
    for _ in range(2):
        daemons.stop("networkmanager")
        assert appvm.oracle.addresses("eth0"), "it leaves the network as it is"
        daemons.networkmanager()
        soon_managed(appvm, daemons)
    assert "ERROR" not in appvm.log()


@pytest.mark.behaviour("B25")
def test_the_command_line_without_an_agent() -> None:
    appvm, daemons = start(ENTRIES)
    daemons.networkmanager()
    appvm.qube.guestnet("uplink", "add", "eth0")
    soon_managed(appvm, daemons, ipv6=False)
    assert appvm.qube.guestnet("uplink", "add", "eth0").stdout == ""
    assert appvm.qube.guestnet("plan").stdout == ""
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert not appvm.qube.path(PROFILE).exists()
    assert UUID not in daemons.nmcli("-g", "UUID", "connection", "show")
    eventually(lambda: not appvm.oracle.addresses("eth0"), what="no address is left")


@pytest.mark.behaviour("B27")
def test_a_users_disconnect_holds_and_up_restores() -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons)
    daemons.nmcli("device", "disconnect", "eth0")
    eventually(lambda: not appvm.oracle.addresses("eth0"), what="disconnected")
    eventually(passes(appvm), what="a pass after that", trouble=appvm.log)
    appvm.write("/qubes-netmask", "255.255.255.255")
    appvm.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    never(lambda: appvm.oracle.addresses("eth0"), 1.0, "it was configured again")
    assert appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False).returncode == 1
    daemons.nmcli("connection", "up", NAME)
    soon_managed(appvm, daemons)
    assert appvm.servers() == [DNS, DNS2]


@pytest.mark.behaviour("B132")
@pytest.mark.parametrize("how", ["deleted", "changed", "deleted before its restart"])
def test_a_profile_that_somebody_deleted_or_changed_is_read_again(how: str) -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons)
    if how == "changed":
        daemons.nmcli("connection", "modify", NAME, "ipv4.dns", "192.0.2.53")
        appvm.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
        eventually(lambda: "192.0.2.53" not in daemons.nmcli("-g", "ipv4.dns", "connection", "show", NAME))
        soon_managed(appvm, daemons)
        return
    daemons.nmcli("connection", "delete", NAME)
    if how == "deleted before its restart":
        daemons.stop("networkmanager")
        daemons.networkmanager()
    eventually(lambda: NAME in daemons.nmcli("-g", "NAME", "connection", "show").splitlines(), trouble=appvm.log)
    daemons.nmcli("connection", "up", NAME)
    soon_managed(appvm, daemons)


@pytest.mark.behaviour("B28")
def test_the_profile_goes_and_comes_with_the_interface() -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    appvm.agent()
    for _ in range(2):
        soon_managed(appvm, daemons)
        appvm.unplug()
        eventually(lambda: not appvm.qube.path(PROFILE).exists(), what="the file goes", trouble=appvm.log)
        gone = lambda: UUID not in daemons.nmcli("-g", "UUID", "connection", "show")  # noqa: E731
        eventually(gone, what="the profile goes", trouble=appvm.log)
        appvm.plug()
    soon_managed(appvm, daemons)


@pytest.mark.behaviour("B28")
def test_a_stale_profile_of_a_former_start_goes() -> None:
    appvm, _ = start(plugged=False)
    appvm.qube.write(f"{FOLDER}/qubes-uplink-eth9", "[connection]\nid=old\n")
    appvm.qube.write(f"{FOLDER}/office", "[connection]\nid=office\n")
    appvm.agent()
    eventually(lambda: not appvm.qube.path(f"{FOLDER}/qubes-uplink-eth9").exists(), what="the stale one goes")
    assert appvm.qube.path(f"{FOLDER}/office").exists()


@pytest.mark.behaviour("B29")
def test_without_nmcli_the_uplink_is_configured_directly() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(FLAG)
    hidden = appvm.qube.run("sh", "-c", "command -v nmcli").stdout.strip()
    appvm.qube.run("mount", "--bind", "/dev/null", str(Path(hidden)))
    appvm.qube.guestnet("apply")
    appvm.check(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    assert not appvm.qube.path(PROFILE).exists()


@pytest.mark.behaviour("B15")
def test_both_disable_flags() -> None:
    appvm, daemons = start()
    appvm.qube.set_flag("disable-default-route")
    appvm.qube.set_flag("disable-dns-server")
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.53\n")
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons, default=False)
    assert daemons.device("IP4.DNS") == ""
    assert DNS not in appvm.qube.read(RESOLV_CONF)


@pytest.mark.behaviour("B13")
def test_ipv6_without_a_gateway() -> None:
    appvm, daemons = start({**ENTRIES, "/qubes-ip6": IP6})
    daemons.networkmanager()
    appvm.agent()

    def configured() -> bool:
        assert appvm.oracle.addresses("eth0") == {f"{IP}/32", f"{IP6}/128"}
        assert (routes(appvm), routes(appvm, 6)) == (["default scope link"], [])
        return True

    eventually(configured, trouble=appvm.log)


def test_a_change_from_dom0_on_a_live_interface() -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons)
    appvm.write("/qubes-ip", "10.137.0.77")
    soon_managed(appvm, daemons, ip="10.137.0.77")
    appvm.write("/vm-config/net-mtu", "1420")
    eventually(lambda: (appvm.oracle.link("eth0") or {})["mtu"] == 1420, what="the MTU", trouble=appvm.log)
    soon_managed(appvm, daemons, ip="10.137.0.77")


def test_handed_over_without_a_gap() -> None:
    appvm, daemons = start()
    appvm.qube.set_flag(FLAG, False)
    appvm.agent()
    appvm.soon_configured(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    daemons.networkmanager()
    appvm.check(ip6=f"{IP6}/128", gateway6=GATEWAY6)
    assert not appvm.qube.path(PROFILE).exists()
    events = probes.KernelEvents(appvm.qube)
    appvm.qube.set_flag(FLAG)
    appvm.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    soon_managed(appvm, daemons)
    for family in (socket.AF_INET, socket.AF_INET6):
        there = 1
        for added, identity in events.default_routes():
            if identity[0] == family:
                there += 1 if added else -1
                assert there > 0, "there was a moment without a default route"
    events.close()


@pytest.mark.behaviour("B30")
def test_vifs_stay_unmanaged() -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons)
    appvm.ip("link", "add", "vif7.0", "address", BACKEND_MAC, "type", "veth", "peer", "name", "far7")
    appvm.ip("link", "set", "vif7.0", "up")
    unmanaged = lambda: "unmanaged" in daemons.device("GENERAL.STATE", "vif7.0")  # noqa: E731
    eventually(unmanaged, what="unmanaged", trouble=lambda: daemons.nmcli("-f", "GENERAL", "device", "show", "vif7.0"))
    link = appvm.oracle.link("vif7.0")
    assert link is not None
    assert link["address"] == BACKEND_MAC


@pytest.mark.behaviour("B20")
def test_resolv_conf_is_a_plain_file_also_after_networkmanager() -> None:
    appvm, daemons = start()
    conf = appvm.qube.path(RESOLV_CONF)
    conf.unlink()
    conf.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    appvm.agent()
    eventually(lambda: stat.S_ISREG(conf.lstat().st_mode), what="a plain file", trouble=appvm.log)
    daemons.networkmanager()
    soon_managed(appvm, daemons)
    eventually(lambda: "NetworkManager" in appvm.qube.read(RESOLV_CONF), what="NetworkManager writes it")
    daemons.stop("networkmanager")
    assert stat.S_ISREG(conf.lstat().st_mode)
    assert appvm.servers() == [DNS, DNS2]


def codes(appvm: AppVm) -> dict[str, str]:
    found = json.loads(appvm.qube.guestnet("check", "--json", check=False).stdout)
    return {finding["code"]: finding["severity"] for finding in found}


def test_check_tells_what_networkmanager_does_to_our_work() -> None:
    appvm, daemons = start()
    appvm.agent()
    assert codes(appvm)["networkmanager-not-running"] == "error"
    daemons.networkmanager()
    soon_managed(appvm, daemons)
    found = codes(appvm)
    assert found["networkmanager-present"] == "note"
    assert "resolv-conf-foreign" not in found
    daemons.nmcli("device", "disconnect", "eth0")
    eventually(lambda: codes(appvm).get("networkmanager-waiting") == "warning", what="the disconnect is named")
    status = appvm.qube.guestnet("status", check=False).stdout
    assert "NetworkManager has not configured it" in status


@pytest.mark.behaviour("B31")
def test_a_saved_profile_with_the_former_name_is_mended() -> None:
    appvm, daemons = start()
    appvm.ip("link", "add", "ens6", "type", "veth", "peer", "name", "far6")
    saved = f"{FOLDER}/office.nmconnection"
    appvm.qube.write(saved, "[connection]\nid=office\nuuid=11111111-2222-3333-4444-555555555555\ntype=ethernet\n"
                            "interface-name=ens6f0\n")  # fmt: skip
    appvm.qube.path(saved).chmod(0o600)
    appvm.agent()
    eventually(lambda: "interface-name=ens6\n" in appvm.qube.read(saved), what="mended", trouble=appvm.log)
    daemons.networkmanager()
    assert daemons.nmcli("-g", "connection.interface-name", "connection", "show", "office") == "ens6"


@pytest.mark.behaviour("B3")
def test_wait_uplink_waits_for_networkmanager() -> None:
    appvm, daemons = start()
    appvm.agent()
    waiting = appvm.qube.spawn("wait", *AppVm.program("wait-uplink", "--timeout", "60"))
    assert appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False).returncode == 1
    assert waiting.running
    daemons.networkmanager()
    assert waiting.wait(20) == 0
    assert appvm.oracle.addresses("eth0") == {f"{IP}/32", f"{IP6}/128"}


def test_the_profile_of_another_mac_is_another() -> None:
    appvm, daemons = start(ENTRIES)
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons, ipv6=False)
    appvm.unplug()
    other = MAC[:-1] + "7"
    appvm.write("/qubes-mac", other)
    appvm.plug(mac=other)
    eventually(lambda: daemons.device("GENERAL.CON-UUID") == UUID[:-1] + "7", 20, trouble=appvm.log)
