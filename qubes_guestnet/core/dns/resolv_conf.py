# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf: its text, whose file it is and why, and how often we fight for it.

All pure: `system/files.py` gathers the facts and publishes the bytes.

Whose file it is follows from what the file *is* and what the user said about it, never from what is in its comments.
A file is ours while it holds what we published last, by the sum in the owned record: ppp's `usepeerdns`, `sed` in an
up-script and `echo >>` leave our first lines where they are, and what such a program wrote is not ours (B124). A former
release left no sum; then ours is what has exactly the form that we publish. The first fact in this order that is true
decides:

1. protected: the user listed it in a protected-files.d; scripts keep their hands off (Whonix needs it, B23).
2. immutable: `chattr +i` says the same to everybody.
3. disabled: the service `disable-dns-server`. What we wrote is emptied, what another wrote stays (B15).
4. networkmanager: NetworkManager configures the uplink and with it the servers.
5. hook: a user's hook wrote it, and it names servers other than dom0's (B124).
6. tunnel: another program wrote it while a VPN is there, and it names servers other than dom0's. Written back, the
   names of this qube and of those behind it left outside of the tunnel (B124). It is ours again when the tunnel goes.
   A device of a VPN that is set down has not gone: its file stays, and `upstream_servers` refuses the questions.
7. else it is ours. A symbolic link is replaced by a file, wherever it leads: systemd leaves one that leads to nothing
   when its resolver is off (B19).
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable

from qubes_guestnet.core.namedtuple import NamedTuple
from qubes_guestnet.core.owned_state import Record, checksum
from qubes_guestnet.core.values import IPAddress

# resolv.conf(5): the C library uses the first three and no more (MAXNS).
MAX_NAMESERVERS = 3
# What a hook leaves to a process of its own, which ends a moment later, is still its doing.
HOOK_GRACE_SECONDS = 1.0
# A file of a former release is known by it, so it is the same in every version.
HEADER = (
    b"# Made by qubes-guestnet from what dom0 wrote into QubesDB.\n"
    b"# Changes here do not last; `qubes-guestnet status` shows which program owns this file.\n"
)


class Resolver(NamedTuple):
    """What a resolv.conf says.

    Args:
        servers: the name servers in the order of the file, at most as many as the C library uses.
    """

    servers: tuple[IPAddress, ...]


def render(servers: Iterable[IPAddress]) -> bytes:
    """Return the whole text of a resolv.conf with these servers, in this order; empty bytes for no servers."""
    lines = [f"nameserver {server}\n".encode("ascii") for server in servers][:MAX_NAMESERVERS]
    return HEADER + b"".join(lines) if lines else b""


def parse(data: bytes, *, every: bool = False) -> Resolver:
    """Read a resolv.conf as the C library does; what it would not understand is passed over.

    A keyword counts only at the very start of a line, and `#` or `;` there makes a comment (resolv.conf(5)).

    Args:
        data: the file.
        every: all servers, also those that the C library does not come to. For callers that cannot use each: three IPv6
            servers in front hid the only one that other qubes can ask (behaviour B130).
    """
    servers: list[IPAddress] = []
    for line in data.split(b"\n"):
        if not line.startswith((b"nameserver ", b"nameserver\t")):
            continue
        words = line.split()
        if len(words) > 1 and (every or len(servers) < MAX_NAMESERVERS):
            try:
                servers.append(ipaddress.ip_address(words[1].decode("ascii")))
            except ValueError:  # also UnicodeDecodeError
                continue
    return Resolver(tuple(servers))


class FileFacts(NamedTuple):
    """All that the decision needs to know of a resolv.conf, gathered in one go.

    Args:
        kind: "missing", "regular", "symlink" or "other" (a folder, a device).
        data: what a regular file holds, cut after `system.files.LONGEST`; empty for the other kinds.
        mode: permission bits of a regular file, 0 for the other kinds.
        link_target: where a symbolic link leads, as it is written in it.
        protected_by: the list that names the file, "" for none.
        immutable: has the immutable or append-only attribute.
        disabled: the service `disable-dns-server` is set.
        networkmanager: NetworkManager configures the uplink.
        linked: what is behind a symbolic link, empty where that is nothing.
        hook: the hook that wrote it, "" for none.
        tunnel: what shows that a VPN is there, "" for none; see `tunnel`. Neither counts for a file that names no
            servers other than dom0's.
        published: sum of what we published last, and perhaps of what we were about to; "" where that is not known.
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
        """It holds what we wrote. We never make a link, so a link to our words is not ours."""
        if self.kind != "regular" or not self.data:
            return False
        if self.published:
            return checksum(self.data) in self.published.split()
        return self.data == render(parse(self.data).servers)

    @property
    def content(self) -> bytes:
        """What a program that opens the file reads."""
        return self.linked if self.kind == "symlink" else self.data

    def holds(self, data: bytes, mode: int = 0o644) -> bool:
        """It already is what publishing `data` would make of it."""
        return (self.kind, self.data, self.mode) == ("regular", data, mode)


class Owner(enum.Enum):
    """Whose word counts for the file."""

    PROTECTED = "protected"
    IMMUTABLE = "immutable"
    DISABLED = "disabled"
    NETWORKMANAGER = "networkmanager"
    HOOK = "hook"
    TUNNEL = "tunnel"
    DIRECT = "direct"


# Of these the file is as long as it names servers of theirs.
KEPT = frozenset({Owner.HOOK, Owner.TUNNEL})


class Decision(NamedTuple):
    """Whose file it is.

    Args:
        owner: whose word counts.
        reasons: every fact looked at and the outcome, in one line, for programs.
        detail: what the deciding fact names: a list, a hook or a device; "" where it names nothing.
    """

    owner: Owner
    reasons: str
    detail: str = ""


# In the order in which they count.
_OWNERS: tuple[tuple[Owner, Callable[[FileFacts], object]], ...] = (
    (Owner.PROTECTED, lambda facts: facts.protected_by),
    (Owner.IMMUTABLE, lambda facts: facts.immutable),
    (Owner.DISABLED, lambda facts: facts.disabled),
    (Owner.NETWORKMANAGER, lambda facts: facts.networkmanager),
    (Owner.HOOK, lambda facts: facts.hook),
    (Owner.TUNNEL, lambda facts: facts.tunnel),
)


def others(facts: FileFacts, servers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Servers in the file that are not dom0's, of a file that is not ours; what a VPN or a hook may have written.

    A link to a stub resolver (127.0.0.53) is what systemd leaves behind, and no VPN's (B19).

    Args:
        facts: the file.
        servers: dom0's.
    """
    if facts.ours:
        return ()
    ours = frozenset(servers)
    named = parse(facts.content, every=True).servers
    return tuple(own for own in named if own not in ours and not (facts.kind == "symlink" and own.is_loopback))


class Way(NamedTuple):
    """By which device a server of the file would be asked; names of devices, "" for none.

    Args:
        server: of the file.
        device: by which packets to it leave.
    """

    server: IPAddress
    device: str


class TunnelFacts(NamedTuple):
    """What may show that a VPN is there. Every device is one that is neither an uplink of ours nor a vif nor lo.

    Args:
        ways: of the file's servers.
        links: devices without a link layer that are up: tun, WireGuard, PPP. A client tells of its servers before it
            sets its routes (wg-quick, OpenVPN).
        defaults: devices that carry a default route, or half of one (0.0.0.0/1).
        down: devices of a VPN (tun, WireGuard, PPP) that are not up; the kernel's own ones, as tunl0, do not count.
    """

    ways: tuple[Way, ...] = ()
    links: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    down: tuple[str, ...] = ()


def tunnel(facts: TunnelFacts) -> str:
    """The device that shows that a VPN is there, "" for none: one that leads to a server, else the others in turn."""
    return next(iter((*_up(facts), *facts.down)), "")


def is_down(facts: TunnelFacts) -> bool:
    """Return whether all that shows a VPN is a device that is set down: no question can take its way."""
    return bool(facts.down) and not _up(facts)


def _up(facts: TunnelFacts) -> tuple[str, ...]:
    return (*(way.device for way in facts.ways if way.device), *facts.links, *facts.defaults)


def hook_wrote(modified: float, began: int, ended: Iterable[float | None], limit: float) -> bool:
    """Return whether the file was written while one of the hooks ran that were started last.

    Args:
        modified: when the file was written, seconds of the wall clock.
        began: when the hooks were started; 0 for never.
        ended: when each of them ended, None for one that runs still; an end before `began` is of a run before.
        limit: how long they may run, in seconds. It counts where the end of one is not known.
    """
    ends = (began + limit if end is None or end < began else end + HOOK_GRACE_SECONDS for end in ended)
    return bool(began) and any(began <= modified <= end for end in ends)


def choose_owner(facts: FileFacts) -> Decision:
    """Decide whose file it is; the first fact of the list that is true wins, and all of them are in the reasons."""
    answers = [(owner, fact(facts)) for owner, fact in _OWNERS]
    owner, deciding = next(((owner, answer) for owner, answer in answers if answer), (Owner.DIRECT, ""))
    # What shows a VPN or a hook is looked at only where the file names servers of theirs.
    words = [f"{name.value}={_word(answer)}" for name, answer in answers if answer or name not in KEPT]
    kind = f"symlink:{facts.link_target}" if facts.kind == "symlink" else facts.kind
    words += [f"kind={kind}", f"ours={_word(facts.ours)}", f"owner={owner.value}"]
    detail = deciding if isinstance(deciding, str) else ""
    return Decision(owner, " ".join(words).encode("unicode_escape").decode("ascii"), detail)


def _word(answer: object) -> str:
    return answer if isinstance(answer, str) and answer else "yes" if answer else "no"


def wanted(decision: Decision, facts: FileFacts, servers: Iterable[IPAddress]) -> bytes | None:
    """Return what the file is to hold.

    Args:
        decision: of `choose_owner` for these facts.
        facts: the file as it is.
        servers: the name servers dom0 wants.

    Returns:
        The bytes to publish, or None for hands off. Where no server is to be written, a file of ours becomes empty
        (its servers are dom0's old ones) and anything else stays as it is.
    """
    data = b""
    # Until NetworkManager writes it: a link is made a file, for NetworkManager would write through it (B20).
    nobodys = facts.kind != "regular" or facts.ours or not facts.data
    before_networkmanager = decision.owner is Owner.NETWORKMANAGER and nobodys
    if decision.owner is Owner.DIRECT or before_networkmanager:
        data = render(servers)
    elif decision.owner is not Owner.DISABLED:
        return None
    return data if data or facts.ours else None


def announced(record: Record, data: bytes) -> Record:
    """A record that says what the file is about to hold: a killed agent would else take it for another's (B148)."""
    sums, own = record.published.split(), checksum(data)
    return record if sums[1:] and sums[-1] == own else record._replace(published=" ".join((*sums[-2:], own)))


def noted(record: Record, data: bytes) -> Record:
    """Return a record that says what the file holds by us; what another program makes of it is known by that (B124)."""
    return record._replace(published=checksum(data))


# A program that truncates a file writes it in the same moment; on a loaded machine some milliseconds can be in between.
TRUNCATED_SECONDS = 0.1


def may_be_truncated(facts: FileFacts, data: bytes) -> bool:
    """Return whether another program may have emptied a file in order to write it (B124).

    What that program then writes is lost if the file is replaced in between: it goes into the replaced one.

    Args:
        facts: of the file.
        data: that it is to hold.
    """
    return facts.kind == "regular" and not facts.data and bool(data)


class RewriteBudget:
    """How often the same content is written back over what another program wrote.

    Two programs that both insist would write for ever. After `LIMIT` write-backs within `WINDOW` we report and leave
    the other's content, until the window has moved on or something else is wanted. The clock is the caller's.
    """

    LIMIT = 5
    WINDOW = 60.0  # seconds

    def __init__(self) -> None:
        self._wanted: bytes | None = None
        self._spent: list[float] = []

    def allow(self, data: bytes, now: float) -> bool:
        """Return whether to publish `data` over content that differs from it; True counts as done.

        Args:
            data: the bytes to publish. The first time it is these, it is news and no write-back, and always allowed.
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
        """Refund the last permitted write, which failed; news that was not written stays news."""
        if not self._spent:
            self._wanted = None
        del self._spent[-1:]

    def next_try(self, now: float) -> float | None:
        """Seconds until `allow` says yes again for the same content; None when it does so now."""
        if len(self._spent) < self.LIMIT:
            return None
        left = self.WINDOW - (now - self._spent[0])
        return left if left > 0 else None
