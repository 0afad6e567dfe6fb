# SPDX-License-Identifier: GPL-2.0-or-later
"""QubesDB entries → settings of a provider, and what follows from them for the interface of each qube behind it.

The rules for untrusted values are those of `settings`. Each name in `held` stands for something that stays as it is in
force until dom0 writes a good value: a typing error in a gateway disconnects no qube.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Entries

from ...errors import SettingsError
from .. import checks
from ..namedtuple import NamedTuple
from ..settings import PROVIDER_KEY, UPLINK_PREFIXES_OF_A_PROVIDER
from ..values import IPV4, IPV6, IPAddress, IPInterface, Neighbour, Route, State
from .vif import Mapping, Vif, metric

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GATEWAY_KEY = "/qubes-netvm-gateway"
GATEWAY6_KEY = "/qubes-netvm-gateway6"
DNS_KEYS = ("/qubes-netvm-primary-dns", "/qubes-netvm-secondary-dns")
CONNECTED_KEYS = ("/connected-ips", "/connected-ips6")
MAPPED = "/mapped-ip/"

# What a provider reads besides `settings.UPLINK_PREFIXES_OF_A_PROVIDER`; mappings are read for one address each.
PROVIDER_PREFIXES: tuple[str, ...] = CONNECTED_KEYS[:1]  # a prefix of both
# All keys of a provider, for a caller that reads them at once; few qubes have mappings.
EVERYTHING: tuple[str, ...] = (*UPLINK_PREFIXES_OF_A_PROVIDER, *PROVIDER_PREFIXES, MAPPED)
# What a provider watches besides `settings.WATCHED`.
PROVIDER_WATCHED: tuple[str, ...] = (GATEWAY_KEY, GATEWAY6_KEY, *DNS_KEYS, *CONNECTED_KEYS, MAPPED)

GROUP_VIF = 2
# The addresses that dom0 names unless it is told otherwise; the qubes behind have them, whatever this one can read.
VIRTUAL_DNS = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))


class ProviderSettings(NamedTuple):
    """What dom0 asks of a provider.

    Args:
        active: this qube is to provide a network. What else it takes is the caller's to know.
        gateway: our IPv4 address towards the qubes; None when there is none, or not a valid one.
        gateway6: the same of IPv6, may be link-local; None: no IPv6, or not a valid one (then "ipv6" is in `held`).
        virtual_dns: the addresses that the qubes ask for names, without repetition.
        connected: addresses of the qubes that have this one as their provider, running or not.
        held: of "gateway", "dns", "ipv6" and "connected", those with a value that is not valid.
        errors: one for each key that is not valid.
        refuse6: qubes behind this one have IPv6, and dom0 has given this one none for them: IPv6 was switched on while
            it ran (behaviour B160). They are refused.
    """

    active: bool = False
    gateway: ipaddress.IPv4Address | None = None
    gateway6: ipaddress.IPv6Address | None = None
    virtual_dns: tuple[ipaddress.IPv4Address, ...] = ()
    connected: frozenset[IPAddress] = frozenset()
    held: frozenset[str] = frozenset()
    errors: tuple[SettingsError, ...] = ()
    refuse6: bool = False

    def serves(self, version: int) -> bool:
        """Return whether the vifs get this family. With an invalid key they do: the rules in force then decide.

        IPv4 is always on. To refuse IPv6 takes a way to the qube as well.
        """
        return version == IPV4 or self.gateway6 is not None or "ipv6" in self.held or self.refuse6


class Elements(NamedTuple):
    """What a vif has in the sets of the rules.

    Args:
        allowed: interface and address: what may be sent on it.
        downstream: addresses that must not be seen on any interface but a vif.
    """

    allowed: tuple[tuple[str, IPAddress], ...] = ()
    downstream: tuple[IPAddress, ...] = ()


class _Reader:
    def __init__(self, untrusted_entries: Entries[str, bytes]) -> None:
        self._untrusted_entries = untrusted_entries
        self.held: set[str] = set()
        self.errors: list[SettingsError] = []

    def present(self, key: str) -> bool:
        return bool(self._untrusted_entries.get(key))

    def value(self, key: str, check: Callable[[bytes], Any], expected: str, name: str = "") -> Any:
        """Return the checked value; None if it is absent; None, an error and `name` held if it is invalid."""
        untrusted_value = self._untrusted_entries.get(key, b"")
        try:
            return check(untrusted_value) if untrusted_value else None
        except ValueError:
            self.refuse(key, untrusted_value, expected, name)
            return None

    def addresses(self, key: str, check: Callable[[bytes], Any], expected: str, name: str) -> list[IPAddress]:
        """Return the good words of a list; the first bad one makes an error."""
        found, untrusted_bad = [], []
        for untrusted_word in self._untrusted_entries.get(key, b"").split():
            try:
                found.append(check(untrusted_word))
            except ValueError:
                untrusted_bad.append(untrusted_word)
        if untrusted_bad:
            self.refuse(key, untrusted_bad[0], expected, name)
        return found

    def refuse(self, key: str, untrusted_value: bytes, expected: str, name: str) -> None:
        self.errors.append(SettingsError(key, untrusted_value, expected))
        self.held.add(name)


def parse_provider(untrusted_entries: Entries[str, bytes]) -> ProviderSettings:
    """Return entries as read with `PROVIDER_PREFIXES` and those of the uplink → settings. It does not raise.

    In a qube that is not a provider all other keys are ignored: they may be left from a former role.
    """
    reader = _Reader(untrusted_entries)
    if not reader.present(PROVIDER_KEY):
        return ProviderSettings()
    gateway = reader.value(GATEWAY_KEY, checks.host4, checks.HOST4_EXPECTED.format("10.138.0.1"), "gateway")
    gateway6 = reader.value(GATEWAY6_KEY, checks.host6, checks.HOST6_EXPECTED.format("fe80::1"), "ipv6")
    expected = checks.HOST4_EXPECTED.format(VIRTUAL_DNS[0])
    named = [reader.value(key, checks.host4, expected, "dns") for key in DNS_KEYS]
    dns = [server or usual for server, usual in zip(named, VIRTUAL_DNS, strict=True)]
    connected: list[IPAddress] = []
    for key, check, expected in (
        (CONNECTED_KEYS[0], checks.host4, checks.HOST4_EXPECTED.format("10.137.0.5")),
        (CONNECTED_KEYS[1], checks.address6, checks.HOST6_EXPECTED.format("fd09:24ef:4179::a89:5")),
    ):
        connected += reader.addresses(key, check, f"{expected}; several are separated by blanks", "connected")
    without6 = gateway6 is None and "ipv6" not in reader.held
    return ProviderSettings(
        True,
        gateway,
        gateway6,
        () if "dns" in reader.held else tuple(dict.fromkeys(dns)),
        frozenset(connected),
        frozenset(reader.held),
        tuple(reader.errors),
        without6 and any(address.version == IPV6 for address in connected),
    )


def mapping_prefix(address: IPAddress) -> str:
    """Below it QubesDB has what the qube with this address sees instead."""
    return f"{MAPPED}{address}/"


def parse_mappings(
    untrusted_entries: Entries[str, bytes], addresses: Iterable[IPAddress]
) -> tuple[tuple[Mapping, ...], tuple[SettingsError, ...]]:
    """Return the mappings of these addresses, and the errors. A mapping with a value that is not valid is none.

    Args:
        untrusted_entries: as read with `mapping_prefix` of each address.
        addresses: of a qube; IPv6 ones have no mappings.
    """
    reader = _Reader(untrusted_entries)
    found = []
    for address in addresses:
        prefix = mapping_prefix(address)
        if not isinstance(address, ipaddress.IPv4Address) or not reader.present(f"{prefix}visible-ip"):
            continue
        before = len(reader.errors)
        expected = checks.HOST4_EXPECTED.format("192.168.1.5")
        visible = reader.value(f"{prefix}visible-ip", checks.host4, expected)
        gateway = reader.value(f"{prefix}visible-gateway", checks.host4, expected)
        # dom0 writes these entries for every qube; where nothing is hidden the visible address is the real one.
        if len(reader.errors) == before and visible != address:
            found.append(Mapping(address, visible, gateway))
    return tuple(found), tuple(reader.errors)


def _addresses(vif: Vif, settings: ProviderSettings) -> tuple[IPAddress, ...]:
    """Return the addresses in use: no IPv6 with a fake IPv4 address, because the qube would see its real IPv6 one."""
    versions = [version for version in (IPV4, IPV6) if settings.serves(version)]
    if vif.mappings:
        versions = [IPV4]
    return tuple(address for address in vif.addresses if address.version in versions)


def desired(vif: Vif, settings: ProviderSettings) -> State:
    """Return what the interface of a qube is to have.

    Args:
        vif: what is known of it.
        settings: of the provider; where the gateway is held, the ones that we put on the interface stay.
    """
    addresses = _addresses(vif, settings)
    gateways: set[IPInterface] = set()
    for version, gateway, name in ((IPV4, settings.gateway, "gateway"), (IPV6, settings.gateway6, "ipv6")):
        if name in settings.held:
            gateways.update(own for own in vif.gateways if own.version == version)
        # The kernel makes the link-local address itself, from the MAC that every vif has.
        elif gateway is not None and gateway not in checks.LINK_LOCAL6:
            gateways.update(ipaddress.ip_interface(gateway) for own in addresses if own.version == version)
    return State(
        up=True,
        group=GROUP_VIF,
        addresses=frozenset(gateways),
        neighbours=frozenset(Neighbour(address, vif.mac) for address in addresses),
        routes=frozenset(Route(ipaddress.ip_network(address), metric=metric(vif.name.domid)) for address in addresses),
    )


def elements(vif: Vif, settings: ProviderSettings) -> Elements:
    """Return what the sets of the rules have to hold for a vif, of both families. No address: it may send nothing."""
    addresses = _addresses(vif, settings)
    return Elements(tuple((vif.name.text, address) for address in addresses), addresses)
