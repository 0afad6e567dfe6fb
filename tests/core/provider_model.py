# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider without a kernel: the models of nftables and of links, the records of its vifs, and the qubes behind it.

Its passes are those of `provider.vifs`. After each single operation it checks that nothing passes that may not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import partial
from typing import Any

from qubes_guestnet import flow
from qubes_guestnet.core.nft import limits, rules_text
from qubes_guestnet.core.nft.limits import InForce
from qubes_guestnet.core.operations import ORDER, TRANSACTION, Outcome, Planned, in_order
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.plan import Verb
from qubes_guestnet.core.provider import vif_order, vif_plan
from qubes_guestnet.core.provider.settings import GROUP_VIF, ProviderSettings
from qubes_guestnet.core.provider.vif import GONE, Vif
from qubes_guestnet.core.provider.vif_operations import (
    CloseVif,
    KeepVifRecord,
    MarkVifClosed,
    OpenVif,
    PrepareVif,
    RemoveElements,
    RemoveVifRecord,
    SetElement,
    SetLimits,
    WriteTunable,
    WriteVifRecord,
)
from qubes_guestnet.core.provider.vif_plan import Common, Facts
from qubes_guestnet.core.shared_operations import PurgeConntrack
from qubes_guestnet.core.values import Link, State
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.errors import GuestnetError
from qubes_guestnet.system.nft.program import Refused
from tests.core.memory import Memory
from tests.core.model import Interface, Model
from tests.core.ruleset import Ruleset

MAC = "00:16:3e:5e:6c:0{}"
BACKEND = "fe:ff:ff:ff:ff:ff"
NAMES = ("vif4.0", "vif5.0", "vif6.0")
ADDRESSES = tuple(map(ipaddress.ip_address, ("10.137.0.4", "10.137.0.5", "fd09::4", "fd09::5")))
OFF = ProviderSettings(True, ipaddress.IPv4Address("10.138.0.1"))
ON = OFF._replace(gateway6=ipaddress.IPv6Address("fd09::1"), connected=frozenset(ADDRESSES[:1]))
# What other programs have beside ours.
FOREIGN = (
    "add element ip qubes allowed { \"tun0\" . 10.9.0.9 }\n"
    "add element ip qubes downstream { 10.9.0.9 }\n"
    "add rule ip qubes custom-forward ip daddr 198.51.100.9 drop\n"
    "table inet vpn {\nset allowed { type ifname; }\n"
    "chain kill { type filter hook forward priority filter; policy drop; }\n}\n"
)  # fmt: skip
KINDS = (PurgeConntrack, WriteVifRecord, SetLimits, SetElement, WriteTunable, PrepareVif, OpenVif, CloseVif)
KINDS += (RemoveElements, RemoveVifRecord, MarkVifClosed, KeepVifRecord)


class Killed(BaseException):
    """SIGKILL."""


class World:
    """A provider: its kernel, its rules, its records, and the qubes behind it.

    Attributes:
        qubes: by the name of the interface, the addresses that the qube at its other end may use.
        talked: addresses with connections of a former holder that conntrack knows, by the name of their present holder.
        values: settings of the kernel that are not as they were made.
        fails: kinds of which every operation fails.
        killed: the agent is killed after so many operations; 0 for never.
    """

    def __init__(self, common: Common) -> None:
        self.common = common
        self.kernel, self.nft, self.disk = Model(), Ruleset(), Memory()
        self.nft.load(rules_text.base(ipv6=True, arp=common.arp) + FOREIGN)
        self.records: dict[str, Vif] = {}
        self.qubes: dict[str, tuple[Any, ...]] = {}
        self.talked: set[tuple[str, Any]] = set()
        self.values: dict[tuple[str, ...], str] = {}
        self.fails: frozenset[type] = frozenset()
        self.killed = self.count = 0
        self.index = 10
        self.foreign = self.of_others()

    # --- what Xen and others do ----------------------------------------------------------------------------------

    def plug(self, name: str, addresses: tuple[Any, ...]) -> None:
        """A new device, which has nothing; what its name had before is gone, and its qube has another one's past."""
        self.unplug(name)
        self.index += 1
        self.kernel.interfaces[self.index] = Interface(Link(self.index, name, BACKEND, driver="vif"))
        self.qubes[name] = addresses
        self.talked |= {(name, address) for address in addresses}

    def unplug(self, name: str) -> None:
        """Its device goes, and is not told of."""
        for index, interface in tuple(self.kernel.interfaces.items()):
            if interface.link.name == name:
                del self.kernel.interfaces[index]
        self.qubes.pop(name, None)
        self.talked = {each for each in self.talked if each[0] != name}

    def of_others(self) -> tuple[Any, ...]:
        return (
            "10.9.0.9" in self.nft.elements("ip", "qubes", "downstream"),
            '"tun0" . 10.9.0.9' in self.nft.elements("ip", "qubes", "allowed"),
            self.nft.rules("ip", "qubes", "custom-forward"),
            self.nft.listing("inet", "vpn"),
        )

    # --- looking -------------------------------------------------------------------------------------------------

    def link(self, name: str) -> Link | None:
        found = (each for each in self.kernel.interfaces.values() if each.link.name == name)
        interface = next(found, None)
        return interface.link._replace(up=interface.up, group=interface.group) if interface is not None else None

    def look(self, vif: Vif, known: Vif | None, others: tuple[Vif, ...] = ()) -> Facts:
        link = self.link(vif.name.text)
        if link is None:
            return Facts(vif, known, None)
        paths = [tunable.path for tunable in vif_plan.tunables(vif, self.common, others)]
        return Facts(vif, known, link, self.observe(link, vif), self.settings(paths), others)

    def observe(self, link: Link, vif: Vif) -> State:
        return self.kernel.observe(link, vif.addresses)

    def settings(self, paths: Any) -> dict[tuple[str, ...], str | None]:
        return {path: self.values.get(path, "-") for path in paths}

    @property
    def listed(self) -> frozenset[str]:
        listings = (self.nft.listing(family, "qubes") for family in ("ip", "ip6", "arp"))
        return vif_order.listed("".join(listings))

    @property
    def in_force(self) -> InForce:
        listings = "".join(self.nft.listing(family, "qubes-limits") for family in ("ip", "ip6"))
        rules = {
            (family, chain): len(each.rules)
            for family in ("ip", "ip6")
            if (family, "qubes-limits") in self.nft.tables
            for chain, each in self.nft.tables[family, "qubes-limits"].chains.items()
        }
        return InForce(limits.in_force(listings), rules, {})

    # --- the passes, as `provider.vifs` has them -----------------------------------------------------------------

    def plan_online(self, vif: Vif, fresh: bool, record: Record, so_far: Outcome) -> Planned:
        known = self.records.get(vif.name.text)
        if known is not None and so_far.done:
            vif = vif._replace(gateways=known.gateways)
        facts = self.look(vif, known)
        if facts.link is None:
            raise GuestnetError("went")
        found = vif_plan.report(facts, self.common, every=True)
        return Planned(in_order(vif_plan.set_up(found, known, so_far, fresh=fresh)), record)

    def online(self, name: str) -> Outcome:
        """As hotplug asks for it."""
        link = self.link(name)
        assert link is not None
        vif = Vif(parse_name(name), MAC.format(name[3]), "vif", self.qubes[name])
        known = self.records.get(name)
        same = known is not None and vif_order.is_its_own(known, link)
        if known is not None and not (same and set(known.addresses) <= set(vif.addresses)):
            outcome = self.drop(known)
            if outcome.errors:
                return outcome
            known = None
        vif = vif._replace(device=vif_order.device(link), gateways=known.gateways if known else frozenset())
        return self.settle(partial(self.plan_online, vif, known != vif or not link.up))

    def locking(self, vif: Vif, *, ends: bool = True) -> tuple[Any, ...]:
        others = tuple(other for other in self.records.values() if other.name != vif.name)
        values = self.settings(vif_plan.source_checks(others))
        return vif_plan.lock_out(vif, self.common, others, values, sure=ends)

    def plan_drop(self, vif: Vif, taken: bool, record: Record, so_far: Outcome) -> Planned:
        link = self.link(vif.name.text)
        observed = self.observe(link, vif) if link is not None else State()
        return Planned(in_order(vif_plan.drop(vif, link, observed, self.locking(vif), so_far, taken=taken)), record)

    def drop(self, vif: Vif, *, taken: bool = False) -> Outcome:
        return self.settle(partial(self.plan_drop, vif, taken))

    def plan_closing(self, vif: Vif, record: Record, so_far: Outcome) -> Planned:
        return Planned(in_order(vif_plan.close(vif, self.locking(vif, ends=False), so_far)), record)

    def plan_all(self, staying: tuple[Vif, ...], record: Record, so_far: Outcome) -> Planned:
        ops: list[Any] = []
        for each in staying:
            vif = self.records[each.name.text]
            facts = self.look(vif, vif, staying)._replace(present=self.listed, found=self.in_force)
            ops += vif_plan.set_up(vif_plan.report(facts, self.common), vif, so_far)
        return Planned(in_order(ops), record)

    def sweep(self) -> Outcome:
        """All of them, as a pass does."""
        outcome, staying = Outcome(), []
        for vif in tuple(self.records.values()):
            link = self.link(vif.name.text)
            if vif.device != GONE and (link is None or not vif_order.is_its_own(vif, link)):
                outcome = outcome.and_then(self.settle(partial(self.plan_closing, vif)))
        for vif in tuple(self.records.values()):
            link = self.link(vif.name.text)
            if link is None:
                outcome = outcome.and_then(self.drop(vif))
            elif vif_order.is_its_own(vif, link):
                staying.append(vif)
            elif vif.addresses:
                outcome = outcome.and_then(self.drop(vif, taken=True))
        return outcome.and_then(self.settle(partial(self.plan_all, tuple(staying))))

    def plan_refill(self, record: Record, _so_far: Outcome) -> Planned:
        staying = [vif for vif in self.records.values() if vif.device != GONE]
        ops = (op for vif in staying for op in vif_plan.refill(vif, self.common, self.listed, self.in_force))
        return Planned(in_order(ops), record)

    def refill(self) -> Outcome:
        """The sets and limits alone, as after a change of rules."""
        return self.settle(self.plan_refill)

    # --- carrying out --------------------------------------------------------------------------------------------

    def settle(self, plan: Callable[[Record, Outcome], Planned]) -> Outcome:
        table: dict[str, Any] = dict.fromkeys(ORDER, self.carry_out)
        planned, outcome = flow.settle(plan, {**table, TRANSACTION: self.begin}, self.disk)
        return outcome._replace(errors=(*outcome.errors, *planned.errors))

    def begin(self, ops: tuple[Any, ...]) -> Callable[[], None]:
        for op in ops:
            if type(op) in self.fails:
                raise_late = partial(self._refuse, op)
                return raise_late
        return partial(self._load, "".join(op.text for op in ops), len(ops))

    @staticmethod
    def _refuse(op: Any) -> None:
        raise Refused(f"nft: {op}")

    def _load(self, text: str, number: int) -> None:
        self.nft.load(text)
        self.after(number)

    def carry_out(self, op: Any) -> None:
        if type(op) in self.fails:
            raise GuestnetError(f"refused: {op}")
        if isinstance(op, CloseVif | PrepareVif | OpenVif):
            if op.op.verb is Verb.LINK_UP:
                assert op.name not in {name for name, _ in self.talked}, "no open door is left behind (B53)"
            self.kernel.apply(op.op)
        elif isinstance(op, WriteVifRecord | MarkVifClosed | KeepVifRecord):
            self.records[op.name] = op.vif
        elif isinstance(op, RemoveVifRecord):
            del self.records[op.name]
        elif isinstance(op, PurgeConntrack):
            self.talked = {(name, address) for name, address in self.talked if address not in op.addresses}
        elif isinstance(op, WriteTunable):
            self.values[op.tunable.path] = op.tunable.value
        else:
            self.nft.load(op.text)
        self.after(1)

    def after(self, number: int) -> None:
        """After each operation, as if the agent were killed there."""
        self.safe()
        self.count += number
        if self.killed and self.count >= self.killed:
            raise Killed

    # --- what has to hold ----------------------------------------------------------------------------------------

    def allowed(self, name: str) -> set[Any]:
        """Addresses that the rules let a vif send from."""
        pairs = (
            each.split(" . ") for family in ("ip", "ip6") for each in self.nft.elements(family, "qubes", "allowed")
        )
        return {ipaddress.ip_address(address) for own, address in pairs if own == f'"{name}"'}

    def safe(self) -> None:
        """Nothing passes that may not, whenever the agent ends."""
        assert self.of_others() == self.foreign, "nothing foreign is touched"
        for interface in self.kernel.interfaces.values():
            name, known = interface.link.name, self.records.get(interface.link.name)
            sends = self.allowed(name) if interface.up else set()
            assert sends <= set(self.qubes[name]), "a qube sends in its own name alone (B50)"
            for address in sends:
                word = "ip" if address.version == 4 else "ip6"
                held = self.nft.elements(word, "qubes", "downstream")
                assert str(address) in held, "what a qube uses nothing outside may use (QSB-056)"
                limited = self.nft.elements(word, "qubes-limits", "qubes")
                assert f'"{name}"' in limited, "what sends is limited (B112)"
            if interface.up and known is not None and known.device == vif_order.device(interface.link):
                assert interface.group == GROUP_VIF, "what is up is in the group that the rules judge"
            owned = known.gateways if known is not None else frozenset()
            assert set(interface.addresses) <= owned, "the record is ahead of the kernel"
        for name in NAMES:
            assert not self.allowed(name) or name in self.records, "what is allowed is recorded"

    def as_desired(self) -> None:
        """All that are plugged and announced are in service, and nothing is left of the others."""
        for name, vif in self.records.items():
            link = self.link(name)
            if link is None or not vif_order.is_its_own(vif, link):
                assert not self.allowed(name)
                continue
            facts = self.look(vif, vif, tuple(self.records.values()))
            found = facts._replace(present=self.listed, found=self.in_force)
            assert vif_plan.report(found, self.common).configured
            assert link.up
        for name in set(NAMES) - set(self.records):
            assert not self.allowed(name)
            for family in ("ip", "ip6"):
                assert f'"{name}"' not in self.nft.elements(family, "qubes-limits", "qubes")
