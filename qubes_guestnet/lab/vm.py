# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube as dom0 knows it: its settings, and what follows from them for QubesDB.

Read in core-admin (`vm/mix/net.py`, `vm/qubesvm.py`): which address is whose, how the feature ipv6 comes down the
tree, and the fake addresses that qube and provider are told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from ..system import names_client
from . import iptables, world
from .firewall_rules import ACCEPT_ALL, Rules, allows_ping, limits
from .namespaces import LabError
from .provider import VIRTUAL_DNS, Networking, Vif
from .qube import Qube, Service, eventually
from .world import Offer, World

FAKE_IP, FAKE_GATEWAY, FAKE_NETMASK = "net.fake-ip", "net.fake-gateway", "net.fake-netmask"
IPV6 = "ipv6"
PROVIDER_FLAG = "qubes-network"
# Of a provider: the rules of the qubes behind it are in force. Qubes OS switches it on for each provider by itself.
FIREWALL_FLAG = "qubes-firewall"
_NETMASK = "255.255.255.255"
_PREFIX6 = "fd09:24ef:4179:"
_MAC = "00:16:3e:5e:6c:00"
_LAST_NUMBER = 9999
# Numbers from here on have neither .0 nor .255 as their last part: some systems take these for no host's.
_PLAIN_NUMBERS = 255


class Firewall:
    """The rules of a qube in dom0.

    Attributes:
        rules: as dom0 has them in memory. An expired one is not written, and its number is not used for another.
        saved: as they are in dom0's file, from which dom0 loads them when a rule expires.
        timers: Unix times at which dom0 does that.
    """

    def __init__(self) -> None:
        self.rules: Rules = ACCEPT_ALL
        self.saved: Rules = ACCEPT_ALL
        self.timers: set[int] = set()

    def save(self, now: float) -> None:
        """Save the rules without expired ones, and set the timer of the next one that expires."""
        self.saved = tuple(rule for rule in self.rules if not rule.expired(now))
        self.timers |= {min(moments)} if (moments := [rule.expire for rule in self.saved if rule.expire]) else set()


class Vm:
    """A qube.

    Args:
        name: its name.
        qid: its number, from 1, which makes its addresses. A disposable's own number.
        provides_network: whether other qubes can be connected to it.
        ipv6: the feature of that name: True or "1" on, False or "" off, None: as what it is connected to.
        disposable: whether it has the addresses of a disposable.
        offer: what it has outside, None for nothing.
    """

    def __init__(
        self, name: str, qid: int, *, provides_network: bool = False, ipv6: bool | str | None = None,
        disposable: bool = False, offer: Offer | None = None,
    ) -> None:  # fmt: skip
        if not 0 < qid <= _LAST_NUMBER:
            raise LabError(f"{name}: no address for the number {qid}")
        self.name = name
        self.qid = qid
        self.provides_network = provides_network
        self.disposable = disposable
        # Features by their names in dom0; "" is off, absent is as the provider's.
        self.features: dict[str, str] = {}
        if ipv6 is not None:
            self.features[IPV6] = "1" if ipv6 else ""
        # Those of its template, which count where it has none of its own.
        self.template_features: dict[str, str] = {iptables.FEATURE: "1"}
        # As `qvm-prefs VM ip …` sets them.
        self.custom_ip: str | None = None
        self.custom_ip6: str | None = None
        self.custom_mac: str | None = None
        self.firewall = Firewall()
        # Service flags, there from its start on.
        self.flags: set[str] = {PROVIDER_FLAG, FIREWALL_FLAG} if provides_network else set()
        self.netvm: Vm | None = None
        self.offer = offer
        # What of it runs: 0 and None while it does not.
        self.domid = 0
        self.qube: Qube | None = None
        self.agent = provides_network  # whether a start of it starts its agent
        self.world: World | None = None
        self.provides: Networking | None = None
        self._names: tuple[Qube, Service] | None = None
        self.database: dict[str, bytes] = {}
        # Its interface: the provider's end, that provider, its name in the qube, its number and in which domain.
        self.plugged: Vif | None = None
        self.backend: Vm | None = None
        self.interface = ""
        self.attached = self.numbered = 0
        # While it was paused its provider was changed: the name of the one from before, "" for none.
        self.deferred_from: str | None = None
        # Only a plain provider knows these, see `Vif`.
        self.plain = False
        self.proxy_arp = True
        self.proxy_delay = 0

    def __repr__(self) -> str:
        return f"<{self.name}>"

    # --- addresses ---------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Its real IPv4 address: what its provider and everybody behind that know it by."""
        if self.custom_ip is not None:
            return self.custom_ip
        high, low = divmod(self.qid, 256) if self.qid < _PLAIN_NUMBERS else divmod(self.qid - 1, 254)
        return f"10.{138 if self.disposable else 137}.{high}.{low + (self.qid >= _PLAIN_NUMBERS)}"

    @property
    def address6(self) -> str:
        """Its IPv6 address, in use where IPv6 is on."""
        if self.custom_ip6 is not None:
            return self.custom_ip6
        return f"{_PREFIX6}:a8{'a' if self.disposable else '9'}:{self.qid:x}"

    def feature(self, name: str) -> str | None:
        """Return a feature of its own, or else of its template."""
        return self.features.get(name, self.template_features.get(name))

    @property
    def visible_address(self) -> str:
        """The IPv4 address it is told."""
        return self.feature(FAKE_IP) or self.address

    @property
    def visible_gateway(self) -> str | None:
        """The IPv4 gateway it is told."""
        return self.feature(FAKE_GATEWAY) or (self.netvm.visible_address if self.netvm else None)

    @property
    def mac(self) -> str:
        """Address of its interface: the same in every qube, unless it is set."""
        return self.custom_mac or _MAC

    @property
    def has_ipv6(self) -> bool:
        """Whether the feature is on, by itself or by what it is connected to."""
        if IPV6 in self.features:
            return bool(self.features[IPV6])
        return self.netvm is not None and self.netvm.has_ipv6

    @property
    def networked6(self) -> str | None:
        """The IPv6 address it is told, None for none; one that was set by hand is told whatever the feature is."""
        return self.address6 if self.has_ipv6 or self.custom_ip6 is not None else None

    @property
    def gateway6(self) -> str | None:
        """The IPv6 gateway of the qubes behind it."""
        return self.networked6 if self.provides_network and self.has_ipv6 else None

    @property
    def reaches4(self) -> bool:
        """Whether a ping over IPv4 gets all the way out: to a world with IPv4, by providers that let it pass."""
        outside = self.world.offer if self.world is not None else self.offer
        if outside is not None and outside.ipv4:
            return True
        if self.netvm is None or self.netvm.qube is None or not self._may_ping(world.HOST):
            return False
        return self.netvm.reaches4

    @property
    def reaches6(self) -> bool:
        """Whether a ping over IPv6 gets all the way out: it has it, nothing is translated, and so on up to a world."""
        outside = self.world.offer if self.world is not None else self.offer
        if outside is not None and outside.ipv6:
            return True
        has = self.has_ipv6 and not self.feature(FAKE_IP) if self.qube is None else self._attached6
        has = has and self._may_ping(world.HOST6)
        return has and self.netvm is not None and self.netvm.serves6 and self.netvm.reaches6

    @property
    def limited(self) -> bool:
        """Whether its firewall rules refuse anything."""
        return limits(self.firewall.rules, time.time())

    def _may_ping(self, host: str) -> bool:
        """Return whether its provider lets a ping of it pass, as far as firewall rules are concerned."""
        enforced = self.netvm is not None and FIREWALL_FLAG in self.netvm.flags
        return not enforced or allows_ping(self.firewall.rules, host, world.ADDRESSES, time.time())

    @property
    def serves6(self) -> bool:
        """Whether it has IPv6 for the qubes behind it: while it runs, whether dom0 has told it so."""
        return self.gateway6 is not None if self.qube is None else "/qubes-netvm-gateway6" in self.database

    @property
    def _attached6(self) -> bool:
        """Whether it was attached with the IPv6 address that it was told, and with no fake address."""
        told, vif = self.database.get("/qubes-ip6", b"").decode(), self.plugged
        gateway = "/qubes-gateway6" in self.database
        return vif is not None and not vif.mapped and gateway and vif.address6 == told

    @property
    def kind(self) -> str:
        """Its kind in the words of releases before 4.0, which dom0 still tells it."""
        if not self.provides_network:
            return "AppVM"
        return "NetVM" if self.netvm is None else "ProxyVM"

    # --- QubesDB -----------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, str]:
        """Return the network entries in dom0's order; none if the qube neither has a provider nor is one."""
        return {**self.provider_entries(), **self.uplink_entries()}

    def uplink_entries(self) -> dict[str, str]:
        """Return the entries about its own interface; none without a provider."""
        if self.netvm is None or self.visible_gateway is None:
            return {}
        written = {
            "/qubes-mac": self.mac,
            "/qubes-ip": self.visible_address,
            "/qubes-netmask": self.feature(FAKE_NETMASK) or _NETMASK,
            "/qubes-gateway": self.visible_gateway,
            "/qubes-primary-dns": VIRTUAL_DNS[0],
            "/qubes-secondary-dns": VIRTUAL_DNS[1],
        }
        if self.networked6 is not None:
            written["/qubes-ip6"] = self.networked6
        if self.has_ipv6 and self.netvm.gateway6 is not None:
            written["/qubes-gateway6"] = self.netvm.gateway6
        return written

    def provider_entries(self) -> dict[str, str]:
        """Return the entries of the provider role; none if it is not a provider."""
        if not self.provides_network:
            return {}
        written = {"/qubes-netvm-network": self.visible_address, "/qubes-netvm-gateway": self.visible_address}
        if self.gateway6 is not None:
            written["/qubes-netvm-gateway6"] = self.gateway6
        return {
            **written,
            "/qubes-netvm-netmask": _NETMASK,
            "/qubes-netvm-primary-dns": VIRTUAL_DNS[0],
            "/qubes-netvm-secondary-dns": VIRTUAL_DNS[1],
        }

    def mapped_entries(self) -> dict[str, str]:
        """Return what its provider is told: dom0 says so of every qube, also of one that is told its real addresses."""
        base = f"/mapped-ip/{self.address}"
        return {
            f"{base}/visible-ip": self.visible_address,
            **({f"{base}/visible-gateway": self.visible_gateway} if self.visible_gateway is not None else {}),
        }

    @staticmethod
    def connected_entries(connected: Iterable[Vm]) -> dict[str, str]:
        """Return what a provider is told of all qubes connected to it, also of halted ones."""
        vms = tuple(connected)
        return {
            "/connected-ips": " ".join(vm.visible_address for vm in vms),
            "/connected-ips6": " ".join(vm.networked6 for vm in vms if vm.networked6 is not None),
        }

    # --- what runs ---------------------------------------------------------------------------------------------

    @property
    def vif(self) -> str | None:
        """Name of the provider's end of its interface, None while it has none."""
        return self.plugged.name if self.plugged is not None else None

    def serve_names(self) -> None:
        """Start what systemd starts in a provider: the socket of the name look-up, of a list that has names."""
        if self.plain or (self._names is not None and self._names[0] is self.qube):
            return
        qube = self.running
        names = qube.spawn("names", sys.executable, "-m", "qubes_guestnet.lab.name_socket")
        # systemd's is there before the agent, which would else complain and try again later.
        eventually(f"{names.name} listens", qube.path(f"/run/qubes-guestnet/{names_client.NAME}").exists)
        self._names = qube, names

    @property
    def running(self) -> Qube:
        """The qube; LabError when it is not started."""
        if self.qube is None:
            raise LabError(f"{self.name} is not running")
        return self.qube
