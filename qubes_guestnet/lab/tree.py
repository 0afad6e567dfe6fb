# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees of qubes, from TOML files: the provider of each qube, their settings, and the networks outside.

A table `[qube.NAME]` has the keys of `QubeSpec` but its name and `offer`; `[world.NAME]`, for a provider, those of
`world.Offer`: what is outside. A provider without a provider has IPv4 outside, if nothing else is said. One behind
another may have a world too, with `ipv4 = false`: that is the other end of its tunnel. `[[qube.NAME.firewall]]` is one
of its firewall rules, each in the words of qvm-firewall. `[dom0] release` is the release of Qubes OS whose dom0 is
played: "4.3" unless it is said, "4.2", or "4.1". `trees/` has examples.
"""

from __future__ import annotations

import ipaddress
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..core import checks
from ..errors import UsageError
from . import firewall_rules, world
from .dom0 import NEWEST, RELEASES, Dom0
from .firewall_rules import ACCEPT_ALL, Rule, RuleError, Rules
from .vm import FAKE_GATEWAY, FAKE_IP, FAKE_NETMASK, Vm
from .world import Offer

BUILT_IN = Path(__file__).resolve().parent / "trees"
DEFAULT = "default"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_LONGEST_NAME = 31


class QubeSpec(NamedTuple):
    """One qube of a tree; each setting as in the file, None where it is not there.

    Attributes:
        name: of the qube.
        netvm: name of its provider.
        provides_network: whether others can be connected to it.
        ipv6: the feature: "1" on, "" off.
        fake_ip: the feature net.fake-ip; fake_gateway and fake_netmask likewise.
        ip: its address, set by hand; ip6 and mac likewise.
        disposable: whether it is one.
        flags: service flags.
        firewall: its firewall rules; without the key the list of a new qube, which accepts everything.
        offer: what is outside.
    """

    name: str
    netvm: str | None = None
    provides_network: bool = False
    ipv6: str | None = None
    fake_ip: str | None = None
    fake_gateway: str | None = None
    fake_netmask: str | None = None
    ip: str | None = None
    ip6: str | None = None
    mac: str | None = None
    disposable: bool = False
    flags: tuple[str, ...] = ()
    firewall: Rules = ACCEPT_ALL
    offer: Offer | None = None


class Tree(NamedTuple):
    """A tree.

    Attributes:
        name: of the tree.
        qubes: every provider before those connected to it, and else the order of the file.
        release: whose dom0 is played, one of `dom0.RELEASES`.
    """

    name: str
    qubes: tuple[QubeSpec, ...]
    release: str = NEWEST


def names() -> tuple[str, ...]:
    """Return the trees that come with the program."""
    return tuple(sorted(file.stem for file in BUILT_IN.glob("*.toml")))


def load(word: str = DEFAULT) -> Tree:
    """Return a tree by its file's path, or by the name of one that comes with the program.

    Raises:
        UsageError: there is no such tree, or something in it is not valid.
    """
    built_in = BUILT_IN / f"{word}.toml"
    file = built_in if word in names() else Path(word)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{word}: {reason}", f"give a file, or one of {', '.join(names())}") from None
    return parse(text, str(file) if file is not built_in else word)


def plant(tree: Tree, dom0: Dom0) -> dict[str, Vm]:
    """Create the qubes of a tree, none of them started; see `Dom0.start_all`."""
    made: dict[str, Vm] = {}
    for spec in tree.qubes:
        vm = dom0.create(
            spec.name, made[spec.netvm] if spec.netvm is not None else None, spec.ipv6,
            provides_network=spec.provides_network, disposable=spec.disposable, offer=spec.offer,
        )  # fmt: skip
        features = {FAKE_IP: spec.fake_ip, FAKE_GATEWAY: spec.fake_gateway, FAKE_NETMASK: spec.fake_netmask}
        vm.features |= {name: value for name, value in features.items() if value is not None}
        vm.custom_ip, vm.custom_ip6, vm.custom_mac = spec.ip, spec.ip6, spec.mac
        vm.flags |= set(spec.flags)
        dom0.set_firewall(vm, spec.firewall)
        vm.agent = True
        made[spec.name] = vm
    return made


# --- reading a file --------------------------------------------------------------------------------------------------


def parse(text: str, source: str) -> Tree:
    """Return a tree from its text.

    Args:
        text: TOML.
        source: the file, for error messages; its last part is the tree's name.

    Raises:
        UsageError: naming file, table and key.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: {error}") from None
    except RecursionError:
        raise UsageError(f"{source}: lists or tables are nested too deeply", "a tree needs two levels") from None
    _no_others(source, "the file", data, ("dom0", "qube", "world"))
    qubes, worlds = (_tables(source, kind, data.get(kind, {})) for kind in ("qube", "world"))
    if not qubes:
        raise UsageError(f"{source}: there is no [qube.NAME]")
    for name in worlds:
        if not qubes.get(name, {}).get("provides_network"):
            raise UsageError(f"{source}: [world.{name}]: there is no [qube.{name}] that provides network")
    specs = {name: _spec(source, name, table, worlds.get(name)) for name, table in qubes.items()}
    tree = Tree(Path(source).stem, tuple(_ordered(source, specs)), _release(source, data.get("dom0", {})))
    _each_address_once(source, tree)
    return tree


def _each_address_once(source: str, tree: Tree) -> None:
    """UsageError where two qubes have one address: the later one would take the earlier one's network away."""
    holders: dict[str, str] = {}
    for name, vm in plant(tree, Dom0()).items():
        for key, address in (("ip", vm.address), ("ip6", vm.address6)):
            other = holders.setdefault(address, name)
            if other != name:
                raise UsageError(
                    f"{source}: [qube.{name}]: address {address} is already used by [qube.{other}]",
                    f"give one of them another {key}; without that key its place in the file decides",
                )


def _release(source: str, table: Any) -> str:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: dom0 is not a table", "write [dom0]")
    return str(_checked(source, "[dom0]", table, _DOM0).get("release", NEWEST))


def _tables(source: str, kind: str, tables: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(tables, dict):
        raise UsageError(f"{source}: {kind} is not a table", f"write [{kind}.NAME]")
    for name, table in tables.items():
        if len(name) > _LONGEST_NAME:
            limit = f"a name has at most {_LONGEST_NAME} characters, this one has {len(name)}"
            raise UsageError(f"{source}: [{kind}.{name}]: not the name of a qube", limit)
        if not name or not _NAME_CHARACTERS.issuperset(name) or not name[0].isalpha():
            limit = "a name consists of letters, digits, - and _, and begins with a letter"
            raise UsageError(f"{source}: [{kind}.{name}]: not the name of a qube", limit)
        if not isinstance(table, dict):
            rules = isinstance(table, list) and name == "firewall"
            advice = f"write [[{kind}.NAME.{name}]], with the name of the qube" if rules else f"write [{kind}.{name}]"
            raise UsageError(f"{source}: [{kind}] {name} is not a table", advice)
    return dict(tables)


def _no_others(source: str, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{source}: {where}: unknown key {key}", f"the keys are {', '.join(sorted(known))}")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _feature(value: Any) -> str:
    if value not in ("", "1"):
        raise ValueError('"1" or ""')
    return str(value)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value or not _NAME_CHARACTERS.issuperset(value):
        raise ValueError("a name in quotes")
    return value


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of names")
    return tuple(map(_word, value))


def _address(value: Any) -> str:
    return str(ipaddress.IPv4Address(_text(value, "an IPv4 address in quotes")))


def _address6(value: Any) -> str:
    return str(ipaddress.IPv6Address(_text(value, "an IPv6 address in quotes")))


def _mac(value: Any) -> str:
    return checks.mac(_text(value, "a MAC address in quotes").encode())


def _one_of_the_releases(value: Any) -> str:
    if value not in RELEASES:
        raise ValueError(f"one of {', '.join(RELEASES)}, in quotes")
    return str(value)


def _addresses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of IPv4 addresses")
    return tuple(map(_address, value))


def _network(value: Any) -> str:
    return str(ipaddress.IPv4Network(_text(value, "a network such as 192.168.0.0/24, in quotes")))


def _text(value: Any, wanted: str) -> str:
    if not isinstance(value, str):
        raise ValueError(wanted)
    return value


def _firewall(value: Any) -> Rules:
    if not isinstance(value, list):
        raise ValueError("a list of rules, or tables [[qube.NAME.firewall]]")
    now = time.time()
    return tuple(_rule(number, rule, now) for number, rule in enumerate(value))


def _rule(number: int, value: Any, now: float) -> Rule:
    try:
        if isinstance(value, str):
            words, comment, text = value.partition("comment=")
            return firewall_rules.from_words([*words.split(), *([comment + text] if comment else [])], now)
        if isinstance(value, dict):
            return firewall_rules.from_words([f"{key}={_plain(key, each)}" for key, each in value.items()], now)
    except RuleError as error:
        raise _RuleNotValid(f"rule {number}: {error.problem}", error.remedy) from None
    raise _RuleNotValid(
        f"rule {number}: {value!r} is no rule", 'give a table, or a text such as "accept a.example tcp"'
    )


def _plain(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RuleError(f"{key}={value} is not valid", "give a text in quotes or a number")
    return str(value)


class _RuleNotValid(ValueError):
    """A rule that is not valid: the problem, and the remedy."""


_Check = Callable[[Any], Any]
_QUBE: Mapping[str, _Check] = {
    "netvm": _word, "provides_network": _boolean, "ipv6": _feature, "fake_ip": _address, "fake_gateway": _address,
    "fake_netmask": _address, "ip": _address, "ip6": _address6, "mac": _mac, "disposable": _boolean, "flags": _words,
    "firewall": _firewall,
}  # fmt: skip
_DOM0: Mapping[str, _Check] = {"release": _one_of_the_releases}
_WORLD: Mapping[str, _Check] = {
    "ipv4": _boolean, "ipv6": _boolean, "network": _network, "router": _address, "address": _address,
    "dns": _addresses,
}  # fmt: skip


def _checked(source: str, where: str, table: Mapping[str, Any], checks: Mapping[str, _Check]) -> dict[str, Any]:
    _no_others(source, where, table, checks)
    found = {}
    for key, value in table.items():
        try:
            found[key] = checks[key](value)
        except _RuleNotValid as error:
            problem, remedy = error.args
            raise UsageError(f"{source}: {where}: {key} {problem}", remedy) from None
        except ValueError as error:
            raise UsageError(f"{source}: {where}: {key} = {value!r} is not valid, expected {error}") from None
    return found


def _spec(source: str, name: str, table: dict[str, Any], outside: dict[str, Any] | None) -> QubeSpec:
    values = _checked(source, f"[qube.{name}]", table, _QUBE)
    offer = None
    if outside is not None:
        offer = _offer(source, name, outside, behind=values.get("netvm"))
    elif values.get("provides_network") and "netvm" not in values:
        offer = Offer()
    return QubeSpec(name, **values, offer=offer)


def _offer(source: str, name: str, table: dict[str, Any], behind: str | None) -> Offer:
    where = f"[world.{name}]"
    offer = Offer(**_checked(source, where, table, _WORLD))
    if behind is not None and offer.ipv4:
        raise UsageError(
            f"{source}: {where}: {name} has IPv4 from {behind}", "give it a tunnel: ipv4 = false, ipv6 = true"
        )
    if behind is None and not offer.ipv4:
        raise UsageError(f"{source}: {where}: ipv4 = false is for a tunnel, of a qube with a netvm")
    network = ipaddress.ip_network(offer.network)
    for key in ("router", "address"):
        if ipaddress.ip_address(getattr(offer, key)) not in network:
            raise UsageError(f"{source}: {where}: {key} {getattr(offer, key)} is not in {network}")
    if offer.router == offer.address:
        raise UsageError(f"{source}: {where}: router and address are the same")
    if ipaddress.ip_address(world.HOST) in network:
        raise UsageError(f"{source}: {where}: network {network} contains the world's host {world.HOST}")
    return offer


def _ordered(source: str, specs: Mapping[str, QubeSpec]) -> Iterable[QubeSpec]:
    for spec in specs.values():
        if spec.netvm is not None and (spec.netvm not in specs or not specs[spec.netvm].provides_network):
            where = f"{source}: [qube.{spec.name}]: netvm = {spec.netvm!r}"
            raise UsageError(f"{where}: no such qube with provides_network")
    placed: dict[str, QubeSpec] = {}
    left = dict(specs)
    while left:
        ready = [spec for spec in left.values() if spec.netvm is None or spec.netvm in placed]
        if not ready:
            spec = next(iter(left.values()))
            raise UsageError(f"{source}: [qube.{spec.name}]: netvm = {spec.netvm!r}: the chain of providers is a loop")
        for spec in ready:
            placed[spec.name] = left.pop(spec.name)
    return placed.values()
