# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse QubesDB entries into settings of the uplink. `provider.settings` and `uplink.mtu` parse untrusted values too.

Rules:

1. Every value is hostile until its check has passed (see `checks`).
2. `parse` never raises on bad data: a bad value becomes a `SettingsError` with key, value and valid form.
3. IPv4, IPv6 and DNS are independent. A bad value *holds* its own family: its configuration stays until the value is
   valid.
4. An empty value counts as absent: dom0 overwrites keys instead of removing them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

from qubes_guestnet.core import checks
from qubes_guestnet.core.namedtuple import NamedTuple
from qubes_guestnet.core.values import IPV4, IPV6, IPAddress, IPInterface
from qubes_guestnet.errors import SettingsError, shown

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

MAC_KEY = "/qubes-mac"
PRIMARY_DNS_KEY = "/qubes-primary-dns"
SECONDARY_DNS_KEY = "/qubes-secondary-dns"
PROVIDER_KEY = "/qubes-netvm-network"
PER_INTERFACE = "/net-config/"
MTU_KEY = "/vm-config/net-mtu"

# MULTIREADs with these prefixes read all relevant entries.
UPLINK_PREFIXES: tuple[str, ...] = ("/qubes-", PER_INTERFACE, MTU_KEY)
# The same for a provider, in which "/qubes-" would also read the rules of every client qube: 5000 entries below
# /qubes-firewall/ for 250 qubes. "/qubes-net" covers the netmasks and all of /qubes-netvm-….
UPLINK_PREFIXES_OF_A_PROVIDER: tuple[str, ...] = (
    MAC_KEY,
    "/qubes-ip",
    "/qubes-net",
    "/qubes-gateway",
    PRIMARY_DNS_KEY,
    SECONDARY_DNS_KEY,
    PER_INTERFACE,
    MTU_KEY,
)


class _FamilyFields(NamedTuple):
    interface: IPInterface
    gateway: IPAddress | None


class Family(_FamilyFields):
    """The settings of one address family.

    Args:
        interface: address and prefix length.
        gateway: of the same family; None if dom0 names none (usual for IPv6 in a qube that provides it itself).
    """

    __slots__ = ()

    def __new__(cls, interface: IPInterface, gateway: IPAddress | None = None) -> Family:
        """Raise ValueError if the two are of different families."""
        if gateway is not None and gateway.version != interface.version:
            raise ValueError(f"{gateway} cannot be the gateway of {interface}")
        return super().__new__(cls, interface, gateway)


class _UplinkFields(NamedTuple):
    mac: str
    ipv4: Family | None
    ipv6: Family | None
    custom: bool
    held: frozenset[int]
    errors: tuple[SettingsError, ...]


class UplinkSettings(_UplinkFields):
    """The settings of one interface.

    Args:
        mac: its MAC address, lower-case.
        ipv4: None if absent, or if invalid (then 4 is in `held`).
        ipv6: None if absent, or if invalid (then 6 is in `held`).
        custom: `/net-config/MAC/custom` exists: the peer is not a Qubes provider, so its MAC is unknown.
        held: families with an invalid value, whose configuration stays unchanged.
        errors: one for each invalid value.
    """

    __slots__ = ()

    def __new__(
        cls,
        mac: str,
        ipv4: Family | None = None,
        ipv6: Family | None = None,
        *,
        custom: bool = False,
        held: frozenset[int] = frozenset(),
        errors: tuple[SettingsError, ...] = (),
    ) -> UplinkSettings:
        """Raise ValueError for IPv4 settings in `ipv6` or the reverse, or for a family that is both valid and held."""
        for family, version in ((ipv4, IPV4), (ipv6, IPV6)):
            if family is not None and (family.interface.version != version or version in held):
                raise ValueError(f"{family.interface} is not a valid IPv{version} setting")
        return super().__new__(cls, mac, ipv4, ipv6, custom, held, errors)

    def family(self, version: int) -> Family | None:
        """Return the settings of IPv4 (4) or IPv6 (6)."""
        return self.ipv4 if version == IPV4 else self.ipv6


class DnsSettings(NamedTuple):
    """The virtual DNS servers.

    Args:
        servers: in the order of use, without duplicates; empty if dom0 names none.
        held: a value that they depend on is invalid, so the servers in use stay.
        errors: one for each invalid value.
    """

    servers: tuple[ipaddress.IPv4Address, ...] = ()
    held: bool = False
    errors: tuple[SettingsError, ...] = ()


class Settings(NamedTuple):
    """The settings of this qube's own network, from QubesDB.

    Args:
        primary_mac: from `/qubes-mac`; None if absent (no interface is expected) or invalid (then `held`).
        uplinks: the uplink of `primary_mac` first, then those of `/net-config/MAC/`, in the order of their MAC.
        dns: the DNS servers.
        provider: this qube provides network to others.
        errors: every error, each once.
        held: the interface that dom0 manages is unknown, so an interface that is not in `uplinks` keeps its settings.
    """

    primary_mac: str | None = None
    uplinks: tuple[UplinkSettings, ...] = ()
    dns: DnsSettings = DnsSettings()
    provider: bool = False
    errors: tuple[SettingsError, ...] = ()
    held: bool = False


class _Key(NamedTuple):
    """One key: its path in the global set, its name below `/net-config/MAC/`, its check, and its valid form."""

    path: str
    leaf: str
    check: Callable[[bytes], Any]
    expected: str

    def where(self, folder: str) -> str:
        """Return the path to read: in the folder of an interface, or in the global set if `folder` is ""."""
        return folder + self.leaf if folder else self.path


class _FamilyKeys(NamedTuple):
    """The keys of one family; `longest` is the default prefix length."""

    version: int
    longest: int
    address: _Key
    prefix: _Key
    gateway: _Key


_NETMASK4_EXPECTED = "a netmask such as 255.255.255.255 or a length from 1 to 32"
_ADDRESS6_EXPECTED = checks.HOST6_EXPECTED.format("fd09:24ef:4179::a89:5") + " or link-local"
_NOT_OWN = ", and not the qube's own"

_FAMILIES = (
    _FamilyKeys(
        IPV4,
        32,
        _Key("/qubes-ip", "ip", checks.host4, checks.HOST4_EXPECTED.format("10.137.0.5")),
        _Key("/qubes-netmask", "netmask", checks.netmask4, _NETMASK4_EXPECTED),
        _Key("/qubes-gateway", "gateway", checks.host4, checks.HOST4_EXPECTED.format("10.138.0.1") + _NOT_OWN),
    ),
    _FamilyKeys(
        IPV6,
        128,
        _Key("/qubes-ip6", "ip6", checks.address6, _ADDRESS6_EXPECTED),
        _Key("/qubes-netmask6", "netmask6", checks.netmask6, "a prefix length from 1 to 128"),
        _Key("/qubes-gateway6", "gateway6", checks.host6, checks.HOST6_EXPECTED.format("fe80::1") + _NOT_OWN),
    ),
)
_MAC = _Key(MAC_KEY, "", checks.mac, "a MAC address such as 00:16:3e:5e:6c:00, not multicast, not the backend's")
_DNS = tuple(
    _Key(path, "", checks.host4, checks.HOST4_EXPECTED.format(example))
    for path, example in ((PRIMARY_DNS_KEY, "10.139.1.1"), (SECONDARY_DNS_KEY, "10.139.1.2"))
)
_CUSTOM = "custom"
_PATH_BYTES = frozenset(b"/-_.:@0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

# Watches on these paths report every change of the settings; a path that ends in / covers everything below it.
WATCHED: tuple[str, ...] = (
    MAC_KEY,
    *(key.path for keys in _FAMILIES for key in (keys.address, keys.prefix, keys.gateway)),
    *(key.path for key in _DNS),
    PROVIDER_KEY,
    PER_INTERFACE,
    MTU_KEY,
)


class _Reader:
    """The entries, and the errors found while reading them."""

    def __init__(self, untrusted_entries: Mapping[str, bytes]) -> None:
        self._untrusted_entries = untrusted_entries
        self.errors: list[SettingsError] = []

    def exists(self, path: str) -> bool:
        """Return whether the key exists, with or without a value."""
        return path in self._untrusted_entries

    def present(self, path: str) -> bool:
        """Return whether the key exists and has a value."""
        return bool(self._untrusted_entries.get(path))

    def value(self, path: str, key: _Key) -> Any:
        """Return the checked value; None if it is absent, and None with an error if it is invalid."""
        if not self.present(path):
            return None
        try:
            return key.check(self._untrusted_entries[path])
        except ValueError:
            self.refuse(path, key.expected)
            return None

    def refuse(self, path: str, expected: str) -> None:
        self.errors.append(SettingsError(path, self._untrusted_entries[path], expected))

    def folders(self) -> dict[str, str]:
        """Return MAC → its folder below /net-config/. An invalid MAC, or a second spelling of one, is one error."""
        folders: dict[str, str] = {}
        ignored: set[str] = set()
        # In reverse order lower case precedes upper case; the kernel and dom0 write a MAC in lower case.
        for untrusted_path in sorted(self._untrusted_entries, reverse=True):
            if not untrusted_path.startswith(PER_INTERFACE):
                continue
            untrusted_name, slash, _ = untrusted_path.removeprefix(PER_INTERFACE).partition("/")
            untrusted_folder = PER_INTERFACE + untrusted_name + slash
            try:
                mac = checks.mac((untrusted_name if slash else "").encode("ascii", "replace"))
            except ValueError:
                mac = ""
            if mac and folders.setdefault(mac, untrusted_folder) == untrusted_folder:
                continue
            if self.present(untrusted_path) and untrusted_folder not in ignored:
                ignored.add(untrusted_folder)
                self._ignore(untrusted_path, mac)
        return folders

    def _ignore(self, untrusted_path: str, mac: str) -> None:
        # Here the path itself is untrusted. The message escapes it, although QubesDB restricts the bytes of a path.
        untrusted_bytes = untrusted_path.encode("utf-8", "backslashreplace")
        name = untrusted_path if _PATH_BYTES.issuperset(untrusted_bytes) else shown(untrusted_bytes)
        expected = f"no second spelling of {mac}" if mac else f"the name of a folder to be {_MAC.expected}"
        self.errors.append(SettingsError(name, self._untrusted_entries[untrusted_path], expected))


def parse(untrusted_entries: Mapping[str, bytes]) -> Settings:
    """Parse the entries below `UPLINK_PREFIXES` into settings.

    Args:
        untrusted_entries: path → raw value; paths that do not concern the uplink are ignored.

    Returns:
        Settings whose values have all passed their checks. The function raises no error, whatever the entries are.
    """
    reader = _Reader(untrusted_entries)
    primary_mac = reader.value(_MAC.path, _MAC)
    held = bool(reader.errors)
    folders = reader.folders()
    uplinks = []
    primary = None
    if primary_mac is not None:
        folder = folders.pop(primary_mac, "")
        own = bool(folder) and reader.present(folder + _FAMILIES[0].address.leaf)
        primary = _uplink(reader, primary_mac, folder, own)
        uplinks.append(primary)
    for mac, folder in sorted(folders.items()):
        if any(reader.present(folder + keys.address.leaf) for keys in _FAMILIES):
            uplinks.append(_uplink(reader, mac, folder, own=True))
    dns = _dns(reader, primary, held)
    return Settings(primary_mac, tuple(uplinks), dns, reader.present(PROVIDER_KEY), tuple(reader.errors), held)


def _uplink(reader: _Reader, mac: str, folder: str, own: bool) -> UplinkSettings:
    """Return the settings of one interface, either all from its own folder or all from the global keys."""
    before = len(reader.errors)
    (ipv4, valid4), (ipv6, valid6) = (_family(reader, keys, folder if own else "") for keys in _FAMILIES)
    held = frozenset(version for version, valid in ((IPV4, valid4), (IPV6, valid6)) if not valid)
    # This is the only key whose presence counts, whatever its value (behaviour B11).
    custom = bool(folder) and reader.exists(folder + _CUSTOM)
    return UplinkSettings(mac, ipv4, ipv6, custom=custom, held=held, errors=tuple(reader.errors[before:]))


def _family(reader: _Reader, keys: _FamilyKeys, folder: str) -> tuple[Family | None, bool]:
    """Return a family, and whether it is valid. Without an address its other keys are ignored."""
    if not reader.present(keys.address.where(folder)):
        return None, True
    before = len(reader.errors)
    address = reader.value(keys.address.where(folder), keys.address)
    prefix = reader.value(keys.prefix.where(folder), keys.prefix)
    gateway = reader.value(keys.gateway.where(folder), keys.gateway)
    if gateway is not None and gateway == address:
        # The kernel refuses a route through an address of its own.
        reader.refuse(keys.gateway.where(folder), keys.gateway.expected)
    if address is None or len(reader.errors) > before:
        return None, False
    interface = ipaddress.ip_interface((address, prefix or keys.longest))
    return Family(interface, gateway), True


def _dns(reader: _Reader, primary: UplinkSettings | None, primary_unknown: bool) -> DnsSettings:
    """Return the DNS servers. The gateway replaces only a missing primary server (behaviour B22)."""
    before = len(reader.errors)
    first, second = (reader.value(key.path, key) for key in _DNS)
    errors = tuple(reader.errors[before:])
    if reader.present(PRIMARY_DNS_KEY):
        held = bool(errors)
    else:
        # A gateway that is temporarily unknown is not the same as none.
        held = bool(errors) or primary_unknown or (primary is not None and IPV4 in primary.held)
        gateway = primary.ipv4.gateway if primary is not None and primary.ipv4 is not None else None
        first = gateway if isinstance(gateway, ipaddress.IPv4Address) else None
    servers = () if held else tuple(dict.fromkeys(server for server in (first, second) if server is not None))
    return DnsSettings(servers, held, errors)
