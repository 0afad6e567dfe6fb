# SPDX-License-Identifier: GPL-2.0-or-later
"""Network hooks, fake addresses that come late, and many vifs at once."""

from __future__ import annotations

import sys
import time

import pytest

from qubes_guestnet.lab.probes import ping
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ENTRIES6, HOTPLUG_LOG, ROUTER, WORLD, Provider, several

TELL = 'echo "$0 $# $1 $2 $3 [$4]" >>/run/hooked'
HOOK, OTHER = "/rw/config/network-hooks.d/hook", "/rw/config/network-hooks.d/other"


def told(host: Provider) -> list[str]:
    """What hooks have said since the last look."""
    lines = host.qube.read("/run/hooked").splitlines()
    host.qube.path("/run/hooked").unlink(missing_ok=True)
    return lines


@pytest.mark.behaviour("B59")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_every_executable_is_told_of_every_address(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    host.hook(TELL)
    host.hook(TELL, "other")
    host.hook(TELL, "switched-off")
    host.qube.path("/rw/config/network-hooks.d/switched-off").chmod(0o644)
    host.qube.run("ln", "-s", "hook", "/rw/config/network-hooks.d/same")
    behind = host.plug()
    host.describe(behind, type="vif_ioemu")
    for command in ("online", "offline"):
        (host.online if command == "online" else host.offline)(behind)
        assert told(host) == [
            f"{hook} 4 {command} vif4.0 vif_ioemu [{address}]" for hook in (HOOK, OTHER) for address in behind.addresses
        ]
    host.online(behind)
    told(host)
    host.unplug(behind)
    host.offline(behind)  # the device is gone, and the hooks are told all the same
    assert [line.split()[2] for line in told(host)] == ["offline"] * 4


@pytest.mark.behaviour("B59")
def test_without_an_address_once_with_an_empty_one() -> None:
    host = Provider()
    host.hook(TELL)
    behind = host.plug()
    behind.addresses = ()
    host.describe(behind)
    host.online(behind)
    host.offline(behind)
    assert told(host) == [f"{HOOK} 4 {command} vif4.0 vif []" for command in ("online", "offline")]


BREAKING = {
    "failing": "echo sorry >&2; exit 3",
    "hanging": "sleep 60",
    "killed": "kill -9 $$",
    "loud": "head -c 1000000 /dev/zero | tr '\\\\0' x",
    "in the background": "sleep 60 &",
}


@pytest.mark.behaviour("B59")
@pytest.mark.parametrize("kind", BREAKING)
def test_a_hook_that_goes_wrong_breaks_nothing(kind: str) -> None:
    host = Provider()
    host.qube.write(
        "/run/lab/hasty/sitecustomize.py", "from qubes_guestnet.core import hooks\nhooks.NETWORK_LIMIT_SECONDS = 0.3\n"
    )
    host.hook(BREAKING[kind], "first")
    host.hook(TELL, "second")
    behind = host.plug()
    start = time.monotonic()
    done = host.call("online", behind, PYTHONPATH=":".join(("/run/lab/hasty", *sys.path)))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 10.0
    assert host.node(behind, "hotplug-status") == "connected"
    assert [line.split()[2] for line in told(host)] == ["online"]
    if kind in ("failing", "hanging", "killed"):
        assert "first" in done.stderr, "its owner is told"
    assert host.works(behind)


def test_a_script_that_cannot_be_run() -> None:
    host = Provider(agent=False)
    host.hook("", "broken")
    host.qube.write("/rw/config/network-hooks.d/broken", "#!/nowhere\n")
    host.hook(TELL, "second")
    behind = host.plug()
    done = host.call("online", behind)
    assert (done.returncode, len(told(host))) == (0, 1)
    assert "broken" in done.stderr


@pytest.mark.behaviour("B61")
def test_fake_addresses_that_come_after_the_hotplug_script() -> None:
    host = Provider(ENTRIES)
    # A qube that has spoken by its real address keeps it, see test_provider_mappings.
    behind = host.attach()
    host.write(f"/mapped-ip/{behind.ip}/visible-gateway", "192.168.1.1")
    host.write(f"/mapped-ip/{behind.ip}/visible-ip", "192.168.1.128")
    behind.qube.wire("""
        ip address flush dev eth0; ip address add 192.168.1.128/24 dev eth0
        ip route replace default via 192.168.1.1 dev eth0 onlink
    """)
    eventually(lambda: host.qube.path("/run/netns/vif4-nat").exists(), trouble=host.trouble)
    eventually(lambda: ping(behind.qube, WORLD, 0.3) is not None, trouble=host.trouble)
    assert ping(behind.qube, ROUTER, 1.0) is not None
    assert host.elements("allowed") == {"vif4.0 10.137.0.4"}


@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_twenty_at_once(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    # One qube at the other end is enough to be asked; the others only have to be there.
    first = host.plug(4)
    others = [host.plug_bare(number) for number in range(5, 24)]
    behinds = (first, *others)
    assert [status for status, _ in several(host, "online", behinds)] == [0] * 20, host.trouble()
    assert host.elements("allowed") == {f"{behind.vif} {behind.ip}" for behind in behinds}
    assert host.elements("allowed", "ip6") == {f"{behind.vif} {behind.ip6}" for behind in behinds}
    flags = {link["ifname"]: link["flags"] for link in host.oracle.ip("link")}
    assert all("UP" in flags[behind.vif] for behind in behinds)
    routes = {(route["dev"], route["dst"], route.get("metric", 0)) for route in host.oracle.routes(4)}
    assert {(behind.vif, behind.ip, 32752 - behind.number) for behind in behinds} <= routes
    assert [host.node(behind, "hotplug-status") for behind in behinds] == ["connected"] * 20
    if agent:
        assert host.works(first)
    leaving, staying = others[:6], (first, *others[6:])
    assert [status for status, _ in several(host, "offline", leaving)] == [0] * 6, host.trouble()
    assert host.elements("allowed") == {f"{behind.vif} {behind.ip}" for behind in staying}
    assert host.qube.read(HOTPLUG_LOG) == ""
