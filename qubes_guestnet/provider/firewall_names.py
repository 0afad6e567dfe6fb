# SPDX-License-Identifier: GPL-2.0-or-later
"""The names in firewall rules in the resident agent: their known addresses, and the look-ups in flight.

`core.firewall.name_cache` decides what to look up and when; this module has the clock, the sockets, and the file in
/run that keeps the addresses across a restart. No call blocks: the loop polls the descriptors, and calls `turn` when
one is readable or a look-up is due. Only a provider with a name in its rules loads this module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from ..core.firewall import name_cache, name_messages, name_news, name_text
from ..core.firewall.name_cache import Cache, Known, Share
from ..core.firewall.name_messages import PROGRAM, Question, Request
from ..errors import GuestnetError, as_error
from ..system import files, names_client
from ..system.names_client import LookUp
from ..system.systemd import ERROR, INFO, WARNING, log

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.endpoint import Endpoint
    from ..core.firewall.binding import Names
    from ..core.firewall.name_messages import Answer
    from ..system.paths import Paths

FILE = "names"  # in our folder below /run
# Only root may read it: it lists the names that the owner's qubes may reach.
_MODE = 0o600
# New names are looked up while others wait for an unresponsive server. The service accepts four clients.
_LOOK_UPS = 3


class FirewallNames:
    """The known addresses of the names in firewall rules.

    Args:
        paths: locations of the qube's files.
    """

    def __init__(self, paths: Paths) -> None:
        self._path, self._socket = os.path.join(paths.run, FILE), os.path.join(paths.run, names_client.NAME)
        self._flying: dict[LookUp, set[Question]] = {}  # and what of it has no answer yet
        self._uplinks: frozenset[int] | None = None
        self._share, self._shortest = Share(frozenset(), {}), name_cache.SHORTEST
        self._anew = False
        self._troubles: dict[str, None] = {}  # of look-ups, as told, until one is answered
        self._unsaved = ""  # why the file could not be written, as told
        self._cache, self._saved = self._restored()
        self._known = _known(self._cache)

    def _restored(self) -> tuple[Cache, bytes]:
        data, problem = None, ""
        try:
            data = files.read(self._path, name_text.LONGEST)
        except Exception as error:
            problem = f"{as_error(error)}; the names in firewall rules are looked up again"
        cache, damaged = name_text.restore(data, self._path, boot_seconds())
        if problem or damaged:
            log(WARNING, problem or damaged)
        return cache, data or b""

    # --- in a pass -----------------------------------------------------------------------------------------------

    @property
    def known(self) -> Names:
        """Return the known addresses: (family, name) → addresses."""
        return self._known

    @property
    def questions(self) -> frozenset[Question]:
        """Return all questions that are answered or pending."""
        return frozenset(self._cache.entries)

    def follow(
        self, share: Share, servers: tuple[Endpoint, ...] | None, uplinks: frozenset[int], shortest: int
    ) -> None:
        """Look up the names of the present rules, at the present servers of the redirection.

        If the servers or the uplink have changed, everything is looked up at once.

        Args:
            share: the names of all rules.
            servers: servers of the redirection; None if unknown, so that they stay unchanged.
            uplinks: interface indexes of the uplinks.
            shortest: the shortest time between two look-ups of one name, in seconds.
        """
        before, now = self._cache, boot_seconds()
        servers = before.servers if servers is None else tuple(dict.fromkeys(servers))[: name_messages.MOST_SERVERS]
        anew = self._anew or self._uplinks not in (None, uplinks)
        if anew or servers != before.servers:
            self.close()
        self._uplinks, self._shortest, self._anew = uplinks, shortest, False
        if anew or servers != before.servers or share.questions != before.entries.keys():
            self._cache = name_cache.follow(before, share.questions, servers, now, anew=anew)
        if share.left_out != self._share.left_out:
            for words in name_news.left_out(share):
                log(WARNING, words)
        self._share = share
        self._ask(now)
        self._settle(before)

    def ask_anew(self) -> None:
        """Make the next pass look up everything, because the owner wants it or the known addresses are in doubt."""
        self._anew = True

    # --- in the loop ---------------------------------------------------------------------------------------------

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors for poll, which may change with each call."""
        return tuple(look_up.fileno() for look_up in self._flying)

    def due(self) -> float | None:
        """Return when to call `turn` without another event, by the monotonic clock; None for never."""
        found = [look_up.seconds_left() for look_up in self._flying]
        at = name_cache.next_time(self._cache)
        if at and len(self._flying) < _LOOK_UPS:
            found.append(at - time.clock_gettime(time.CLOCK_BOOTTIME))  # which counts suspended time
        return time.monotonic() + max(min(found), 0.0) if found else None

    def turn(self) -> bool:
        """Read the answers, and start the look-ups that are due.

        Returns:
            Whether known addresses have changed, which requires a pass.
        """
        before, now, known = self._cache, boot_seconds(), self._known
        for look_up in tuple(self._flying):
            self._read(look_up, now)
        self._cache = name_cache.expire(self._cache, now)
        self._ask(now)
        self._settle(before)
        return self._known != known

    def close(self) -> None:
        """Abandon the look-ups in flight."""
        for look_up in self._flying:
            look_up.close()
        self._flying.clear()

    def _ask(self, now: int) -> None:
        while len(self._flying) < _LOOK_UPS and (questions := name_cache.due(self._cache, now)):
            self._cache = name_cache.asked(self._cache, questions, now)
            try:
                look_up = LookUp(self._socket, Request(self._cache.servers, questions))
            except Exception as error:
                self._failed(questions, as_error(error), now)
                return
            self._flying[look_up] = set(questions)

    def _read(self, look_up: LookUp, now: int) -> None:
        try:
            answers = look_up.read()
        except Exception as error:
            look_up.close()
            self._failed(self._flying.pop(look_up), as_error(error), now)
            return
        self._take(answers, now)
        self._flying[look_up].difference_update(answer.question for answer in answers)
        if look_up.ended:
            look_up.close()
            del self._flying[look_up]

    def _take(self, answers: Iterable[Answer], now: int) -> None:
        self._cache = name_cache.answered(self._cache, answers, now, _jitter(), self._shortest)
        if self._troubles and any(answer.reason != PROGRAM for answer in answers):
            self._troubles.clear()
            log(INFO, "the name look-up answers again")

    def _failed(self, questions: Iterable[Question], error: GuestnetError, now: int) -> None:
        """Schedule another look-up of these questions; their known addresses stay."""
        self._cache = name_cache.lost(self._cache, questions, PROGRAM, now, _jitter())
        if str(error) not in self._troubles:
            log(ERROR, f"names in firewall rules: {error}")
        self._troubles[str(error)] = None

    def _settle(self, before: Cache) -> None:
        """Save and report a change of the cache, and save again what could not be saved."""
        if self._cache is before and not self._unsaved:
            return
        for words in name_news.news(before, self._cache):
            log(WARNING, words)
        known = _known(self._cache)
        if known != self._known:
            self._known = known
        self._save()

    def _save(self) -> None:
        data = name_text.render(self._cache)
        if data == self._saved:
            return
        try:
            files.publish(self._path, data, _MODE, sync=False)
        except Exception as error:
            text = str(as_error(error))
            if text != self._unsaved:
                log(ERROR, f"{text}; after a restart of the agent the names in firewall rules are looked up again")
            self._unsaved = text
            return
        self._saved, self._unsaved = data, ""


def read(run: str) -> Cache:
    """Return the agent's cache, for the command line.

    Args:
        run: /run/qubes-guestnet.

    Raises:
        GuestnetError: its file cannot be read, or is damaged.
    """
    path = os.path.join(run, FILE)
    cache, damaged = name_text.restore(files.read(path, name_text.LONGEST), path, boot_seconds())
    if damaged:
        raise GuestnetError(damaged)
    return cache


def _known(cache: Cache) -> dict[tuple[int, str], Known]:
    found = ((question, name_cache.known(cache, question)) for question in cache.entries)
    return {(question.family, question.name): known for question, known in found if known is not None}


def boot_seconds() -> int:
    """Return the time by the clock of the cache: seconds since the boot, suspended ones too."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def _jitter() -> float:
    return int.from_bytes(os.urandom(2), "big") / 65536  # `random` costs 1 MB
