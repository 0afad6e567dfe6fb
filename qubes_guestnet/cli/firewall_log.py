# SPDX-License-Identifier: GPL-2.0-or-later
"""`firewall log`: print packets that the lists of client qubes refuse, as it happens, for a limited time."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping

from ..core.checks import is_decimal
from ..core.firewall import log_lines
from ..core.firewall.shown import ListShown, lists
from ..core.values import IPAddress
from ..errors import GuestnetError, UsageError
from ..system.nft import kernel as nft_kernel
from ..system.nft.log import Log
from ..system.paths import Paths
from . import firewall_ground
from .firewall_ground import Ground
from .options import EXIT_DONE
from .output import complain, json_text, say

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.firewall.log_lines import Refusal
    from .options import Options

SECONDS, LONGEST = 60, 3600
_LOSSY = "packets come faster than they are read, and the kernel drops some: from here on refusals may be missing"
PRINTED = 5  # lines a second for each qube


def run(options: Options, paths: Paths) -> int:
    """Print each packet that a list refuses until the time is up, or until Ctrl-C."""
    words = list(options.arguments)
    seconds = _seconds(words.pop()) if words and is_decimal(words[-1], 100) else SECONDS
    if len(words) > 1:
        raise UsageError(f"firewall log: {words[1]} is not a number of seconds", f"give 1 to {LONGEST}")
    ground = firewall_ground.look(paths)
    if ground.unseen is not None:
        raise ground.unseen
    wanted = firewall_ground.addresses_of(words[0], ground.vifs) if words else tuple(ground.vifs)
    vif = ground.vifs[wanted[0]] if words else ""
    with Log(vif) as log:
        _print(log, _Lists(paths, ground), frozenset(wanted), seconds, as_json=options.json)
    return EXIT_DONE


def _seconds(word: str) -> int:
    if not (len(word) < 6 and 0 < int(word) <= LONGEST):
        raise UsageError(f"{word[:20]} is not a number of seconds", f"give 1 to {LONGEST}")
    return int(word)


class _Lists:
    """The lists in force, read again when the rules have changed."""

    def __init__(self, paths: Paths, ground: Ground) -> None:
        self._paths, self._ground = paths, ground
        self._generation = -1
        self._lists: Mapping[IPAddress, ListShown] = {}

    def refusal(self, seen: log_lines.Seen) -> Refusal | None:
        """Return why a packet is refused; None if its list accepts it."""
        generation = nft_kernel.generation()
        if generation != self._generation:
            self._ground = firewall_ground.look(self._paths)
            found = lists(self._ground.vifs, self._ground.facts)
            self._generation, self._lists = generation, {each.address: each for each in found}
        listed = (self._ground.facts.listed or {}).get(seen.source.version)
        shown = self._lists.get(seen.source)
        loaded = shown is not None and shown.same is not None
        bound = shown.bound if loaded and shown is not None else None
        return log_lines.refusal(seen, bound, (listed.dns if listed is not None else None) or frozenset())


class _Pace:
    """A limit on the printed lines of each qube, so that one qube does not hide the others."""

    def __init__(self) -> None:
        self._second = -1
        self._printed: dict[IPAddress, int] = {}
        self.left_out = 0

    def allows(self, source: IPAddress, now: float) -> bool:
        """Return whether another line of a qube may be printed."""
        if int(now) != self._second:
            self._second, self._printed = int(now), {}
        self._printed[source] = self._printed.get(source, 0) + 1
        allowed = self._printed[source] <= PRINTED
        self.left_out += not allowed
        return allowed


def _print(log: Log, known: _Lists, wanted: frozenset[IPAddress], seconds: int, *, as_json: bool) -> None:
    pace, end, lossy = _Pace(), time.monotonic() + seconds, False
    poll = select.poll()
    poll.register(log, select.POLLIN)
    try:
        while (left := end - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                continue
            for untrusted_packet in log.packets():
                try:
                    seen = log_lines.parse(untrusted_packet)
                except ValueError:
                    continue  # the lists apply to IP packets only
                if seen.source not in wanted:
                    continue
                refused = known.refusal(seen)
                if refused is not None and pace.allows(seen.source, time.monotonic()):
                    _say(refused, as_json=as_json)
            if log.lost and not lossy:
                complain((GuestnetError(_LOSSY),))
                lossy = True
    except KeyboardInterrupt:
        pass
    if pace.left_out and not as_json:
        say((f"{pace.left_out} more packets were refused: only {PRINTED} lines a second are printed for each qube",))


def _say(refused: Refusal, *, as_json: bool) -> None:
    if as_json:
        print(json_text(log_lines.data(refused, time.time())), flush=True)
        return
    clock = time.strftime("%H:%M:%S")
    print(f"{clock} {log_lines.text(refused)}", flush=True)
