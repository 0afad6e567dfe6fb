# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes, by real packets: S-030, S-031, S-033, S-202, S-212."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
from collections.abc import Iterable

from .. import firewall_rules, probes, world
from ..dom0 import Vm
from ..namespaces import LabError
from ..patience import patient
from ..provider import VIRTUAL_DNS
from ..qube import eventually
from ..stage import Stage
from ..vm import FAKE_GATEWAY, FAKE_IP, FAKE_NETMASK

_OPEN, _OTHER = world.ECHO_PORTS
_CHANGE = 3.0  # seconds, as dom0's own suite waits
_SILENT = 1.5
_REFUSED = (errno.EHOSTUNREACH, errno.EACCES)  # what ICMP "administratively prohibited" becomes, by family
_PING, _NAMES, _TCP, _TCP_OTHER = "ping", "names", f"tcp {_OPEN}", f"tcp {_OTHER}"
_ALL = frozenset({_PING, _NAMES, _TCP, _TCP_OTHER})
_DNS, _ICMP = "action=accept specialtarget=dns", "action=accept proto=icmp"
_FAKED = {FAKE_IP: "192.168.1.128", FAKE_GATEWAY: "192.168.1.1", FAKE_NETMASK: "255.255.255.0"}
_CUSTOM, _CUSTOM6 = "192.168.1.1", "2000:aaaa:bbbb::1"
_DEAD = "dead.example.com"
_SECOND_SERVER, _THIRD_SERVER = "192.168.123.46", "192.168.123.47"
_LEAST_TTL = 30
_CONFIG = "/etc/qubes/guestnet.toml"


def limit(stage: Stage, vm: Vm, *rules: str) -> None:
    """Give a qube these rules, as a save in dom0 does."""
    stage.dom0.set_firewall(vm, tuple(map(firewall_rules.parse, rules)))


def s_030(stage: Stage) -> None:
    """Rules of vm1 change: within 3 s exactly the allowed traffic passes, and blocked TCP is refused at once."""
    stage.step("vm1 starts behind proxy, without limits")
    proxy = stage.proxy("proxy")
    vm = stage.start("vm1", proxy)
    stage.reaches(vm)
    answering(proxy)
    hosts = [f"{_host(4)}/32", *([f"{_host(6)}/128"] if stage.ipv6 else [])]
    one = [f"action=accept dst{4 + 2 * (':' in host)}={host} proto=tcp dstports={_OPEN}-{_OPEN}" for host in hosts]
    but = [f"action=drop dst{4 + 2 * (':' in host)}={host} proto=tcp dstports={_OPEN}-{_OPEN}" for host in hosts]
    named = f"action=accept dsthost={world.NAME} proto=tcp dstports={_OPEN}-{_OPEN}"
    for what, rules, allowed in (
        ("nothing", ("action=drop",), frozenset[str]()),
        ("ping", (_ICMP,), frozenset({_PING})),
        ("ping and names", (_ICMP, _DNS), frozenset({_PING, _NAMES})),
        (f"TCP to port {_OPEN} of the host", one, frozenset({_TCP})),
        ("all but that", (*but, "action=accept"), _ALL - {_TCP}),
        ("the same port by the host's name", (named,), frozenset({_TCP})),
    ):
        stage.step(f"vm1 may do: {what}")
        limit(stage, vm, *rules)
        _exactly(stage, vm, allowed)


def _host(version: int) -> str:
    return world.HOST if version == 4 else world.HOST6


def answering(provider: Vm) -> None:
    """Have the kernel answer each refused packet: its budget of errors, 1 a second and peer, is not what is tested."""
    for family in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
        provider.running.wire(f"echo 0 > /proc/sys/net/{family}")


def _exactly(stage: Stage, vm: Vm, allowed: frozenset[str]) -> None:
    """Within 3 s vm1 may do this and no more, over both families where it has them."""
    for version in (4, 6)[: 1 + stage.ipv6]:
        wanted = allowed - ({_NAMES} if version == 6 else frozenset())  # its name servers have IPv4 addresses
        eventually(f"IPv{version}: {sorted(wanted)} pass", lambda: _passing(vm, version) == wanted, _CHANGE)  # noqa: B023


def _passing(vm: Vm, version: int) -> frozenset[str]:
    """Return what passes now. LabError for TCP that is blocked and not refused at once."""
    host, found = _host(version), set[str]()
    for port, name in ((_OPEN, _TCP), (_OTHER, _TCP_OTHER)):
        number = connect(vm, host, port)
        if number is None:
            raise LabError(f"TCP to {host} port {port} is neither answered nor refused")
        found |= {name} if not number else set()
    if probes.ping(vm.running, host, 0.5) is not None:
        found.add(_PING)
    with vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        if version == 4 and probes.query(client, VIRTUAL_DNS[0], world.NAME, 0.5):
            found.add(_NAMES)
    return frozenset(found)


def connect(vm: Vm, host: str, port: int) -> int | None:
    """Return 0 for an open connection, the error of a refused one, None for silence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with vm.running.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(patient(_SILENT))
        try:
            client.connect((host, port))
        except TimeoutError:
            return None
        except OSError as error:
            if error.errno not in _REFUSED:
                raise LabError(f"TCP to {host} port {port}: {error}") from None
            return error.errno
    return 0


class _Talk:
    """A TCP connection to an echo port of the world."""

    def __init__(self, vm: Vm, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = vm.running.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(patient(5.0))
        self._socket.connect((host, port))

    def goes_on(self, deadline: float = 5.0) -> bool:
        """Return whether what is sent now comes back."""
        mark, found = os.urandom(16), b""
        self._socket.settimeout(patient(deadline))
        try:
            self._socket.sendall(mark)
            while len(found) < len(mark):
                piece = self._socket.recv(100)
                if not piece:
                    return False
                found += piece
        except OSError:
            return False
        return found == mark

    def close(self) -> None:
        """End it."""
        self._socket.close()


def s_031(stage: Stage) -> None:
    """Two TCP connections of each family are open; a rule drops one port: its connections end, the others go on."""
    stage.step("vm1 has connections to both ports")
    proxy = stage.proxy("proxy")
    vm = stage.start("vm1", proxy)
    stage.reaches(vm)
    with contextlib.ExitStack() as stack:
        hosts = [_host(version) for version in (4, 6)[: 1 + stage.ipv6]]
        cut, kept = (
            [stack.enter_context(contextlib.closing(_Talk(vm, host, port))) for host in hosts]
            for port in (_OPEN, _OTHER)
        )
        _talking(cut, kept)
        stage.step(f"a rule drops port {_OPEN}")
        limit(stage, vm, f"action=drop proto=tcp dstports={_OPEN}-{_OPEN}", "action=accept")
        eventually("they have ended", lambda: not any(talk.goes_on(0.3) for talk in cut), _CHANGE)
        for _ in range(3):
            _talking((), kept)
            if any(talk.goes_on(0.3) for talk in cut):
                raise LabError(f"a connection to port {_OPEN} goes on")


def _talking(*talks: Iterable[_Talk]) -> None:
    for each in talks:
        if not all(talk.goes_on() for talk in each):
            raise LabError("an allowed connection does not go on")


# --- names ---------------------------------------------------------------------------------------------------------


def s_033(stage: Stage) -> None:
    """Rules by name: the name moves, has no server, and does not exist; a dead name blocks its own entry alone."""
    netvm1, outside = stage.netvm1, stage.netvm1.world
    assert outside is not None
    netvm1.running.write(_CONFIG, f"[firewall]\nleast_ttl = {_LEAST_TTL}\n")
    stage.step("vm1 may reach a name, and one that does not exist")
    vm = stage.start("vm1", netvm1)
    stage.reaches(vm)
    answering(netvm1)
    limit(stage, vm, f"action=accept dsthost={_DEAD}", f"action=accept dsthost={world.NAME} proto=tcp", _DNS)
    old, new = ((world.HOST, world.HOST6), (world.HOST2, world.HOST2_6))
    families = slice(1 + stage.ipv6)
    eventually("other addresses are refused", lambda: all(connect(vm, each, _OPEN) for each in new[families]), _CHANGE)
    _reached(vm, old[families], _CHANGE)
    eventually("the dead name is told", lambda: "does not exist" in _trouble(netvm1, _DEAD))
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(contextlib.closing(_Talk(vm, host, _OPEN))) for host in old[families]]
        stage.step("the name moves: the new address passes, connections to the old one go on")
        outside.say({world.NAME: new})
        if not stage.ipv6:  # another name server is asked at once; the same one when the time to live is over
            outside.change(outside.offer._replace(dns=(_SECOND_SERVER,)))
        _reached(vm, new[families], _LEAST_TTL * 1.2 + 5.0)
        _talking(talks)
        stage.step("no server answers: the last addresses stay, and it is told")
        assert outside.dns is not None
        outside.dns.stop()
        ask_anew(netvm1)
        eventually("it is told", lambda: "cannot be looked up" in _trouble(netvm1, world.NAME), 30.0)
        _reached(vm, new[families], _CHANGE)
        stage.step("the name does not exist any more: it is told, and the other one is there now")
        outside.say({_DEAD: old})
        outside.change(outside.offer._replace(dns=(_THIRD_SERVER,)))
        eventually("it is told", lambda: "does not exist" in _trouble(netvm1, world.NAME))
        _reached(vm, (*old[families], *new[families]), _CHANGE)
        _talking(talks)


def ask_anew(provider: Vm) -> None:
    """`systemctl reload`."""
    assert provider.running.agent is not None
    provider.running.agent.signal(signal.SIGHUP)


def _reached(vm: Vm, hosts: Iterable[str], deadline: float) -> None:
    for host in hosts:
        eventually(f"{vm.name} reaches {host}", lambda: connect(vm, host, _OPEN) == 0, deadline)  # noqa: B023


def _trouble(provider: Vm, name: str) -> str:
    """Return what `firewall show` says of a name, of any qube; of what it shows only valid addresses count."""
    found = json.loads(provider.running.guestnet("firewall", "show", "--json").stdout)
    names = [each for listed in found["lists"] for each in listed["names"] if each["name"] == name]
    for each in names:
        for held in each["addresses"]:
            ipaddress.ip_address(held["address"])
    return " ".join(each["trouble"] or "" for each in names)


# --- other addresses -------------------------------------------------------------------------------------------------


def s_202(stage: Stage) -> None:
    """vm1 is shown another address, behind a proxy: its rules hold by the real one."""
    stage.step("vm1 starts behind proxy with a fake address")
    proxy = stage.proxy("proxy")
    vm = stage.dom0.create("vm1", proxy)
    vm.features |= _FAKED
    stage.boot(vm)
    stage.reaches(vm)
    _limited(stage, vm, proxy)


def s_212(stage: Stage) -> None:
    """vm1 has addresses of its user's: its rules hold by them."""
    stage.step(f"vm1 starts behind proxy with {_CUSTOM}")
    proxy = stage.proxy("proxy")
    vm = stage.dom0.create("vm1", proxy)
    vm.custom_ip, vm.custom_ip6 = _CUSTOM, _CUSTOM6 if stage.ipv6 else None
    stage.boot(vm)
    stage.reaches(vm)
    _limited(stage, vm, proxy)


def _limited(stage: Stage, vm: Vm, proxy: Vm) -> None:
    answering(proxy)
    stage.step("it may ping, and ask for names")
    limit(stage, vm, _ICMP, _DNS)
    _exactly(stage, vm, frozenset({_PING, _NAMES}))
    stage.step("`firewall test` in proxy says the same")
    for words, status in (((), 0), (("tcp", str(_OPEN)), 3)):
        done = proxy.running.guestnet("firewall", "test", vm.address, world.HOST, *words, check=False)
        if done.returncode != status:
            raise LabError(f"firewall test {' '.join(words)}: {done.returncode}, {done.stdout}{done.stderr}")
        stage.note(done.stdout.splitlines()[-1])
