# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse QubesDB entries into settings of a provider, and derive the desired state of each vif.

The rules for untrusted values are those of `settings`. Each name in `held` stands for a part that stays in force until
dom0 writes a valid value: a typing error in a gateway disconnects no qube.
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

# A provider reads these besides `settings.UPLINK_PREFIXES_OF_A_PROVIDER`; mappings are read separately per address.
PROVIDER_PREFIXES: tuple[str, ...] = CONNECTED_KEYS[:1]  # a prefix of both
# All keys of a provider, for a caller that reads them at once; few qubes have mappings.
EVERYTHING: tuple[str, ...] = (*UPLINK_PREFIXES_OF_A_PROVIDER, *PROVIDER_PREFIXES, MAPPED)
# A provider watches these besides `settings.WATCHED`.
PROVIDER_WATCHED: tuple[str, ...] = (GATEWAY_KEY, GATEWAY6_KEY, *DNS_KEYS, *CONNECTED_KEYS, MAPPED)

GROUP_VIF = 2
# dom0's default addresses; client qubes use them even if this qube cannot read the keys.
VIRTUAL_DNS = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))


class ProviderSettings(NamedTuple):
    """The settings of a provider.

    Args:
        active: dom0 makes this qube a provider; the caller checks the service flag.
        gateway: our IPv4 address towards client qubes; None if absent or invalid.
        gateway6: our IPv6 address towards them, may be link-local; None: no IPv6, or invalid (then "ipv6" is in
            `held`).
        virtual_dns: the addresses that client qubes query, without duplicates.
        connected: addresses of the qubes that have this one as their provider, running or not.
        held: those of "gateway", "dns", "ipv6" and "connected" that have an invalid value.
        errors: one for each invalid key.
        refuse6: client qubes have IPv6, but dom0 has given this qube no IPv6 gateway: IPv6 was switched on while it ran
            (behaviour B160). Their IPv6 packets are rejected.
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
        """Return whether the vifs get this family. With an invalid key they do, and the rules in force decide.

        IPv4 is always on. Rejecting IPv6 packets also requires a route to the qube.
        """
        return version == IPV4 or self.gateway6 is not None or "ipv6" in self.held or self.refuse6


class Elements(NamedTuple):
    """The elements of a vif in the sets of the rules.

    Args:
        allowed: pairs of interface and source address.
        downstream: addresses that may appear only on vifs.
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
        """Return the valid words of a list; the first invalid one causes an error."""
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
    """Parse the entries below `PROVIDER_PREFIXES` and those of the uplink into settings. It raises no error.

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
    """Return the prefix of the entries with the visible addresses of a qube."""
    return f"{MAPPED}{address}/"


def parse_mappings(
    untrusted_entries: Entries[str, bytes], addresses: Iterable[IPAddress]
) -> tuple[tuple[Mapping, ...], tuple[SettingsError, ...]]:
    """Return the mappings of these addresses, and the errors. A mapping with an invalid value is left out.

    Args:
        untrusted_entries: entries below `mapping_prefix` of each address.
        addresses: addresses of a qube; IPv6 ones have no mappings.
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
        # dom0 writes these entries for every qube; without a fake address the visible address is the real one.
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
    """Return the desired state of a vif.

    Args:
        vif: the vif.
        settings: settings of the provider; if the gateway is held, our present gateway addresses stay.
    """
    addresses = _addresses(vif, settings)
    gateways: set[IPInterface] = set()
    for version, gateway, name in ((IPV4, settings.gateway, "gateway"), (IPV6, settings.gateway6, "ipv6")):
        if name in settings.held:
            gateways.update(own for own in vif.gateways if own.version == version)
        # The kernel derives the link-local address itself from the MAC address, which is the same for every vif.
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
    """Return the set elements of a vif, of both families. Without an address it may send nothing."""
    addresses = _addresses(vif, settings)
    return Elements(tuple((vif.name.text, address) for address in addresses), addresses)
