# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on other services: NetworkManager, systemd-resolved, and a user's hooks."""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from . import networkmanager

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..dns.resolv_conf import FileFacts
    from ..dns.resolved import LinkNames


@distinct
class PublishFile(NamedTuple):
    """Write a file atomically.

    Args:
        path: path of the file.
        data: its new content.
        over: the file as it was judged; a file that has changed since is not overwritten (behaviour B124).
    """

    path: str
    data: bytes
    over: FileFacts

    def __str__(self) -> str:
        return f"publish {self.path}"


@distinct
class RewriteProfile(NamedTuple):
    """Rewrite a user's profile with the present name of its interface (behaviour B31)."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"publish {networkmanager.FOLDER}/{self.name}: interface name of the former release changed"


@distinct
class PublishProfile(NamedTuple):
    """Write the profile of an uplink to disk."""

    name: str
    text: bytes

    def __str__(self) -> str:
        return f"publish {networkmanager.FOLDER}/{self.name}"


@distinct
class RemoveProfile(NamedTuple):
    """Remove a profile of ours from NetworkManager and from disk; `uuid` is "" if the file has none."""

    name: str
    uuid: str

    def __str__(self) -> str:
        return f"remove {networkmanager.FOLDER}/{self.name}"


@distinct
class LoadProfile(NamedTuple):
    """Make NetworkManager load a profile, because it does not watch its folder."""

    name: str

    def __str__(self) -> str:
        return f"nmcli connection load {networkmanager.FOLDER}/{self.name}"


@distinct
class ActivateProfile(NamedTuple):
    """Activate a profile on an interface."""

    name: str
    interface: str
    uuid: str

    def __str__(self) -> str:
        return f'nmcli connection up "{networkmanager.profile_name(self.interface)}" ifname {self.interface}'


@distinct
class ReapplyProfile(NamedTuple):
    """Reapply a changed profile while the interface stays up."""

    name: str
    interface: str
    uuid: str

    def __str__(self) -> str:
        return f"nmcli device reapply {self.interface}"

    @property
    def instead(self) -> ActivateProfile:
        """Return the activation, for a device that cannot be changed in place and must go down and up."""
        return ActivateProfile(*self)


@distinct
class StartHooks(NamedTuple):
    """Start the user's hooks for a change of the uplink, one after the other."""

    ifindex: int
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"start hook {' '.join(self.paths)}"


@distinct
class SetLinkNames(NamedTuple):
    """Give a link its servers and domains in systemd-resolved."""

    ifindex: int
    interface: str
    names: LinkNames

    def __str__(self) -> str:
        servers, domains = " ".join(self.names.servers), " ".join(self.names.domains)
        return f"resolvectl dns {self.interface} {servers}; resolvectl domain {self.interface} {domains}"


@distinct
class RevertLinkNames(NamedTuple):
    """Remove the servers and domains of a link in systemd-resolved."""

    ifindex: int
    interface: str

    def __str__(self) -> str:
        return f"resolvectl revert {self.interface}"


if TYPE_CHECKING:
    ServiceOperation = (
        PublishFile
        | RewriteProfile
        | PublishProfile
        | RemoveProfile
        | LoadProfile
        | ActivateProfile
        | ReapplyProfile
        | StartHooks
        | SetLinkNames
        | RevertLinkNames
    )
