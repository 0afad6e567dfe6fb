# SPDX-License-Identifier: GPL-2.0-or-later
"""resolv.conf: its text, whose file it is and why, and how often we fight for it.

All pure: `system/files.py` gathers the facts and publishes the bytes.

Whose file it is follows from what the file *is* and what the user said about it, never from what other programs write
into comments. The first fact in this order that is true decides:

1. protected: the user listed it in a protected-files.d; scripts keep their hands off (Whonix needs it, B23).
2. immutable: `chattr +i` says the same to everybody.
3. disabled: the service `disable-dns-server`. What we wrote is emptied, what another wrote stays (B15).
4. networkmanager: NetworkManager configures the uplink and with it the servers.
5. else it is ours. A symbolic link is replaced by a file, wherever it leads: systemd leaves one that leads to nothing
   when its resolver is off (B19).
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable

from qubes_guestnet.core.namedtuple import NamedTuple
from qubes_guestnet.core.values import IPAddress

# resolv.conf(5): the C library uses the first three and no more (MAXNS).
MAX_NAMESERVERS = 3
# Its first line is how we know a file of ours again, so it is the same in every version.
_MARK = b"# Made by qubes-guestnet from what dom0 wrote into QubesDB."
HEADER = _MARK + b"\n# Changes here do not last; `qubes-guestnet status` says who owns this file and why.\n"


class Resolver(NamedTuple):
    """What a resolv.conf says.

    Args:
        servers: the name servers in the order of the file, at most as many as the C library uses.
        ours: we wrote it.
    """

    servers: tuple[IPAddress, ...]
    ours: bool


def render(servers: Iterable[IPAddress]) -> bytes:
    """The whole text of a resolv.conf with these servers, in this order; empty bytes for no servers."""
    lines = [f"nameserver {server}\n".encode("ascii") for server in servers][:MAX_NAMESERVERS]
    return HEADER + b"".join(lines) if lines else b""


def parse(data: bytes) -> Resolver:
    """Read a resolv.conf as the C library does; what it would not understand is passed over.

    A keyword counts only at the very start of a line, and `#` or `;` there makes a comment (resolv.conf(5)).
    """
    servers: list[IPAddress] = []
    for line in data.split(b"\n"):
        if not line.startswith((b"nameserver ", b"nameserver\t")):
            continue
        words = line.split()
        if len(words) > 1 and len(servers) < MAX_NAMESERVERS:
            try:
                servers.append(ipaddress.ip_address(words[1].decode("ascii")))
            except ValueError:  # also UnicodeDecodeError
                continue
    return Resolver(tuple(servers), data.startswith(_MARK))


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
    """

    kind: str = "missing"
    data: bytes = b""
    mode: int = 0
    link_target: str = ""
    protected_by: str = ""
    immutable: bool = False
    disabled: bool = False
    networkmanager: bool = False

    @property
    def ours(self) -> bool:
        """It is a file that we wrote. We never make a link, so a link to our words is not ours."""
        return self.kind == "regular" and parse(self.data).ours

    def holds(self, data: bytes, mode: int = 0o644) -> bool:
        """It already is what publishing `data` would make of it."""
        return (self.kind, self.data, self.mode) == ("regular", data, mode)


class Owner(enum.Enum):
    """Whose word counts for the file."""

    PROTECTED = "protected"
    IMMUTABLE = "immutable"
    DISABLED = "disabled"
    NETWORKMANAGER = "networkmanager"
    DIRECT = "direct"


class Decision(NamedTuple):
    """Whose file it is.

    Args:
        owner: whose word counts.
        reasons: every fact looked at and the outcome, in one line for the journal.
    """

    owner: Owner
    reasons: str


# In the order in which they count.
_OWNERS: tuple[tuple[Owner, Callable[[FileFacts], object]], ...] = (
    (Owner.PROTECTED, lambda facts: facts.protected_by),
    (Owner.IMMUTABLE, lambda facts: facts.immutable),
    (Owner.DISABLED, lambda facts: facts.disabled),
    (Owner.NETWORKMANAGER, lambda facts: facts.networkmanager),
)


def choose_owner(facts: FileFacts) -> Decision:
    """Decide whose file it is; the first fact of the list that is true wins, and all of them are in the reasons."""
    answers = [(owner, fact(facts)) for owner, fact in _OWNERS]
    owner = next((owner for owner, answer in answers if answer), Owner.DIRECT)
    words = [f"{name.value}={_word(answer)}" for name, answer in answers]
    kind = f"symlink:{facts.link_target}" if facts.kind == "symlink" else facts.kind
    words += [f"kind={kind}", f"ours={_word(facts.ours)}", f"owner={owner.value}"]
    return Decision(owner, " ".join(words).encode("unicode_escape").decode("ascii"))


def _word(answer: object) -> str:
    return answer if isinstance(answer, str) and answer else "yes" if answer else "no"


def wanted(decision: Decision, facts: FileFacts, servers: Iterable[IPAddress]) -> bytes | None:
    """What the file is to hold.

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
        """Whether to publish `data` over content that differs from it; True counts as done.

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
        """What was allowed last could not be written, so nobody undid it either: it does not count."""
        del self._spent[-1:]

    def next_try(self, now: float) -> float | None:
        """Seconds until `allow` says yes again for the same content; None when it does so now."""
        if len(self._spent) < self.LIMIT:
            return None
        left = self.WINDOW - (now - self._spent[0])
        return left if left > 0 else None
