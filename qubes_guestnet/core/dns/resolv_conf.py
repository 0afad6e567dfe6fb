# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf: its text, its owner and the reason, and how often we restore it.

All pure: `system/files.py` gathers the facts and publishes the bytes.

The owner follows from the file itself and from the user's settings, never from its comments. A file is ours while its
content has the checksum of our last publication in the owned record: ppp's `usepeerdns`, `sed` in an up-script and
`echo >>` keep our first lines, but the result is not ours (B124). A former release recorded no checksum; then a file is
ours if it has exactly the form that we publish. The first true fact in this order decides:

1. protected: the user listed the file in a protected-files.d, so no program may change it (Whonix needs this, B23).
2. immutable: `chattr +i` means the same.
3. disabled: the service `disable-dns-server`. We empty our own file; another program's file stays (B15).
4. networkmanager: NetworkManager configures the uplink and its servers.
5. hook: a user's hook wrote the file, and it names servers other than dom0's (B124).
6. tunnel: another program wrote the file while a VPN was up, and it names servers other than dom0's. When we restored
   ours, queries of this qube and its client qubes left outside of the tunnel (B124). The file is ours again when the
   tunnel is deleted. While the VPN's device is set down, the file stays, and `upstream_servers` rejects queries.
7. otherwise we own the file. We replace a symbolic link by a file, whatever its target: systemd leaves a dangling link
   when its resolver is off (B19).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from qubes_guestnet.core.enumeration import Enum
from qubes_guestnet.core.namedtuple import NamedTuple
from qubes_guestnet.core.owned_state import Record, checksum
from qubes_guestnet.core.values import IPAddress

# resolv.conf(5): the C library uses only the first three (MAXNS).
MAX_NAMESERVERS = 3
# A hook may leave the writing to a child process that ends a moment later.
HOOK_GRACE_SECONDS = 1.0
# It identifies a file of a former release, so it is the same in every version.
HEADER = (
    b"# Made by qubes-guestnet from what dom0 wrote into QubesDB.\n"
    b"# Changes here do not last; `qubes-guestnet status` shows which program owns this file.\n"
)


class Resolver(NamedTuple):
    """The content of a resolv.conf.

    Args:
        servers: the name servers in the order of the file, at most as many as the C library uses.
    """

    servers: tuple[IPAddress, ...]


def render(servers: Iterable[IPAddress]) -> bytes:
    """Return the whole text of a resolv.conf with these servers, in this order; empty bytes for no servers."""
    lines = [f"nameserver {server}\n".encode("ascii") for server in servers][:MAX_NAMESERVERS]
    return HEADER + b"".join(lines) if lines else b""


def parse(data: bytes, *, every: bool = False) -> Resolver:
    """Parse a resolv.conf as the C library does; unknown lines are ignored.

    A keyword counts only at the very start of a line; `#` or `;` there starts a comment (resolv.conf(5)).

    Args:
        data: content of the file.
        every: return all servers, even those that the C library does not use. It is for callers that cannot use every
            server: three IPv6 servers hid the only one that client qubes can query (behaviour B130).
    """
    servers: list[IPAddress] = []
    for line in data.split(b"\n"):
        if not line.startswith((b"nameserver ", b"nameserver\t")):
            continue
        words = line.split()
        if len(words) > 1 and (every or len(servers) < MAX_NAMESERVERS):
            try:
                servers.append(ipaddress.ip_address(words[1].decode("ascii")))
            except ValueError:  # includes UnicodeDecodeError
                continue
    return Resolver(tuple(servers))


class FileFacts(NamedTuple):
    """The facts about a resolv.conf for the decision about its owner.

    Args:
        kind: "missing", "regular", "symlink" or "other" (a folder, a device).
        data: content of a regular file, cut after `system.files.LONGEST`; empty for the other kinds.
        mode: permission bits of a regular file, 0 for the other kinds.
        link_target: target of a symbolic link, as written in the link.
        protected_by: the list that names the file, "" for none.
        immutable: it has the immutable or append-only attribute.
        disabled: the service `disable-dns-server` is set.
        networkmanager: NetworkManager configures the uplink.
        linked: content of a symbolic link's target, empty if it dangles.
        hook: the hook that wrote it, "" for none.
        tunnel: the device that proves that a VPN is up, "" for none; see `tunnel`. `hook` and `tunnel` do not count if
            the file names no servers other than dom0's.
        published: checksum of our last publication, and perhaps that of the next one; "" if unknown.
        down: the device of `tunnel` is set down.
    """

    kind: str = "missing"
    data: bytes = b""
    mode: int = 0
    link_target: str = ""
    protected_by: str = ""
    immutable: bool = False
    disabled: bool = False
    networkmanager: bool = False
    linked: bytes = b""
    hook: str = ""
    tunnel: str = ""
    published: str = ""
    down: bool = False

    @property
    def ours(self) -> bool:
        """Return whether we wrote the file. We never create a link, so a link to our text is not ours."""
        if self.kind != "regular" or not self.data:
            return False
        if self.published:
            return checksum(self.data) in self.published.split()
        return self.data == render(parse(self.data).servers)

    @property
    def content(self) -> bytes:
        """Return the content that a program reads from the file, through a link if it is one."""
        return self.linked if self.kind == "symlink" else self.data

    def holds(self, data: bytes, mode: int = 0o644) -> bool:
        """Return whether the file already is as publishing `data` would make it."""
        return (self.kind, self.data, self.mode) == ("regular", data, mode)


class Owner(Enum):
    """The owner of the file, by the deciding fact."""

    PROTECTED = "protected"
    IMMUTABLE = "immutable"
    DISABLED = "disabled"
    NETWORKMANAGER = "networkmanager"
    HOOK = "hook"
    TUNNEL = "tunnel"
    DIRECT = "direct"


# These own the file only while it names their servers.
KEPT = frozenset({Owner.HOOK, Owner.TUNNEL})


class Decision(NamedTuple):
    """The decision about the owner of the file.

    Args:
        owner: the owner.
        reasons: every examined fact and the outcome, in one line, for programs.
        detail: the list, hook or device of the deciding fact; "" for none.
    """

    owner: Owner
    reasons: str
    detail: str = ""


# In the order of precedence.
_OWNERS: tuple[tuple[Owner, Callable[[FileFacts], object]], ...] = (
    (Owner.PROTECTED, lambda facts: facts.protected_by),
    (Owner.IMMUTABLE, lambda facts: facts.immutable),
    (Owner.DISABLED, lambda facts: facts.disabled),
    (Owner.NETWORKMANAGER, lambda facts: facts.networkmanager),
    (Owner.HOOK, lambda facts: facts.hook),
    (Owner.TUNNEL, lambda facts: facts.tunnel),
)


def others(facts: FileFacts, servers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return servers other than dom0's in a file that is not ours, which a VPN or a hook may have written.

    A link to a stub resolver (127.0.0.53) is left behind by systemd and does not belong to a VPN (B19).

    Args:
        facts: the file.
        servers: dom0's servers.
    """
    if facts.ours:
        return ()
    ours = frozenset(servers)
    named = parse(facts.content, every=True).servers
    return tuple(own for own in named if own not in ours and not (facts.kind == "symlink" and own.is_loopback))


class Way(NamedTuple):
    """The route to a server of the file.

    Args:
        server: the server.
        device: name of the device by which packets to it leave, "" for none.
    """

    server: IPAddress
    device: str


class TunnelFacts(NamedTuple):
    """The facts that may prove that a VPN is up. No device among them is an uplink of ours, a vif or lo.

    Args:
        ways: routes to the file's servers.
        links: devices without a link layer that are up: tun, WireGuard, PPP. A client announces its servers before it
            adds its routes (wg-quick, OpenVPN).
        defaults: devices with a default route, or half of one (0.0.0.0/1).
        down: devices of a VPN (tun, WireGuard, PPP) that are not up, without those of the kernel, such as tunl0.
    """

    ways: tuple[Way, ...] = ()
    links: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    down: tuple[str, ...] = ()


def tunnel(facts: TunnelFacts) -> str:
    """Return the device that proves that a VPN is up, "" for none. A device that routes to a server precedes others."""
    return next(iter((*_up(facts), *facts.down)), "")


def is_down(facts: TunnelFacts) -> bool:
    """Return whether the only evidence of a VPN is a device that is set down, so that no query can use it."""
    return bool(facts.down) and not _up(facts)


def _up(facts: TunnelFacts) -> tuple[str, ...]:
    return (*(way.device for way in facts.ways if way.device), *facts.links, *facts.defaults)


def hook_wrote(modified: float, began: int, ended: Iterable[float | None], limit: float) -> bool:
    """Return whether the file was written while one of the last started hooks was running.

    Args:
        modified: when the file was written, in seconds of the wall clock.
        began: when the hooks were started; 0 for never.
        ended: when each hook ended, None if it is still running; an end before `began` is that of an earlier run.
        limit: how long they may run, in seconds; used if the end of a hook is unknown.
    """
    ends = (began + limit if end is None or end < began else end + HOOK_GRACE_SECONDS for end in ended)
    return bool(began) and any(began <= modified <= end for end in ends)


def choose_owner(facts: FileFacts) -> Decision:
    """Decide about the owner of the file; the first true fact of the list decides, and the reasons contain all."""
    answers = [(owner, fact(facts)) for owner, fact in _OWNERS]
    owner, deciding = next(((owner, answer) for owner, answer in answers if answer), (Owner.DIRECT, ""))
    # Evidence of a VPN or a hook counts only if the file names their servers.
    words = [f"{name.value}={_word(answer)}" for name, answer in answers if answer or name not in KEPT]
    kind = f"symlink:{facts.link_target}" if facts.kind == "symlink" else facts.kind
    words += [f"kind={kind}", f"ours={_word(facts.ours)}", f"owner={owner.value}"]
    detail = deciding if isinstance(deciding, str) else ""
    return Decision(owner, " ".join(words).encode("unicode_escape").decode("ascii"), detail)


def _word(answer: object) -> str:
    return answer if isinstance(answer, str) and answer else "yes" if answer else "no"


def wanted(decision: Decision, facts: FileFacts, servers: Iterable[IPAddress]) -> bytes | None:
    """Return the desired content of the file.

    Args:
        decision: result of `choose_owner` for these facts.
        facts: the present file.
        servers: the name servers from dom0.

    Returns:
        The bytes to publish, or None to leave the file alone. Without servers our own file becomes empty (it has dom0's
        former servers), and any other file stays unchanged.
    """
    data = b""
    # Until NetworkManager writes the file: replace a link, because NetworkManager would write through it (B20).
    nobodys = facts.kind != "regular" or facts.ours or not facts.data
    before_networkmanager = decision.owner is Owner.NETWORKMANAGER and nobodys
    if decision.owner is Owner.DIRECT or before_networkmanager:
        data = render(servers)
    elif decision.owner is not Owner.DISABLED:
        return None
    return data if data or facts.ours else None


def announced(record: Record, data: bytes) -> Record:
    """Return a record with the next content, or a killed agent would attribute it to another program (B148)."""
    sums, own = record.published.split(), checksum(data)
    return record if sums[1:] and sums[-1] == own else record._replace(published=" ".join((*sums[-2:], own)))


def noted(record: Record, data: bytes) -> Record:
    """Return a record with our published content, by which another program's change is detected (B124)."""
    return record._replace(published=checksum(data))


# A program that truncates a file usually writes it at once; on a loaded machine some milliseconds can pass in between.
TRUNCATED_SECONDS = 0.1


def may_be_truncated(facts: FileFacts, data: bytes) -> bool:
    """Return whether another program may have emptied a file in order to write it (B124).

    If the file is replaced in between, that program's text is lost, because it goes into the replaced file.

    Args:
        facts: facts about the file.
        data: the desired content.
    """
    return facts.kind == "regular" and not facts.data and bool(data)


class RewriteBudget:
    """A limit on restoring the same content over another program's.

    Two programs that keep restoring their content would never stop. After `LIMIT` restores within `WINDOW` we report an
    error and leave the other content, until the window has passed or the desired content changes. The caller passes the
    time.
    """

    LIMIT = 5
    WINDOW = 60.0  # seconds

    def __init__(self) -> None:
        self._wanted: bytes | None = None
        self._spent: list[float] = []

    def allow(self, data: bytes, now: float) -> bool:
        """Return whether to publish `data` over different content; True counts as published.

        Args:
            data: the bytes to publish. New content is not a restore, and is always allowed.
            now: monotonic time in seconds.
        """
        if data != self._wanted:
            self._wanted, self._spent = data, []
            return True
        self._spent = [then for then in self._spent if now - then < self.WINDOW]
        if len(self._spent) >= self.LIMIT:
            return False
        self._spent.append(now)
        return True

    def failed(self) -> None:
        """Refund the last permitted write, which failed; new content that was not written stays new."""
        if not self._spent:
            self._wanted = None
        del self._spent[-1:]

    def next_try(self, now: float) -> float | None:
        """Return the seconds until `allow` permits the same content again; None if it does so now."""
        if len(self._spent) < self.LIMIT:
            return None
        left = self.WINDOW - (now - self._spent[0])
        return left if left > 0 else None
