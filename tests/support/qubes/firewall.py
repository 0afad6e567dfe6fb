# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 and a provider that enforces the lists of the qubes behind it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping

from qubes_guestnet.lab.qube import QUBESDB_FOLDER
from qubes_guestnet.system.qubesdb import store as qubesdb
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, WORLD, WORLD6, Client, Provider

MARK = "/run/qubes-guestnet/firewall"
# The one rule of a qube of which all is refused.
BLOCKED = 'counter reject with icmp admin-prohibited comment "blocked"'
FAMILY = {4: "ip", 6: "ip6"}


class Enforcing(Provider):
    """A provider with the flag `qubes-firewall`, whose firewall is ours and not core-agent's daemon.

    Args:
        entries: its QubesDB.
        agent: start the resident one.
        name: as for `Provider`.
    """

    def __init__(self, entries: Mapping[str, str] = ENTRIES6, *, agent: bool = True, name: str = "") -> None:
        super().__init__(entries, agent=False, name=name)
        self._sport = 20000
        self.qube.set_flag("qubes-firewall")
        self.qube.write(MARK, "")
        if agent:
            self.qube.start_agent()
            eventually(lambda: self.forwards(), trouble=self.trouble)

    # --- dom0 --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def dom0(self) -> Iterator[qubesdb.Store]:
        """A connection to its QubesDB, for reading and writing."""
        store = qubesdb.connect(writable=True, directory=str(self.qube.path(QUBESDB_FOLDER)))
        try:
            yield store
        finally:
            store.close()

    def prepare(self, address: str, *rules: str, policy: str = "drop") -> None:
        """Write a list without its commit, as dom0 does: with gaps between the numbers."""
        with self.dom0() as store:
            _write(store, address, rules, policy)

    def commit(self, address: str, *rules: str, policy: str = "drop") -> None:
        """Write a list and its commit."""
        with self.dom0() as store:
            _write(store, address, rules, policy)
            store.write(f"/qubes-firewall/{address}", b"")

    def handled(self, address: str) -> int:
        """The counter of handled commits."""
        with self.dom0() as store:
            return int(store.read(f"/qubes-firewall-handled/{address}") or 0)

    def applied(self, address: str, *rules: str, policy: str = "drop") -> None:
        """Commit a list, and wait until the agent says that it is in force."""
        before = self.handled(address)
        self.commit(address, *rules, policy=policy)
        eventually(lambda: self.handled(address) > before, trouble=self.trouble)

    # --- what is in force ------------------------------------------------------------------------------------------

    def chain(self, address: str, version: int = 4) -> list[str]:
        """The rules of a qube's chain."""
        name = "qbs-" + address.replace(".", "-").replace(":", "-")
        done = self.oracle.run("nft", "-s", "list", "chain", FAMILY[version], "qubes-firewall", name, check=False)
        lines = [line.strip() for line in done.stdout.splitlines()]
        return [line for line in lines if line.endswith('"')] if not done.returncode else []

    def mapped(self, version: int = 4) -> set[str]:
        """Addresses that lead to a chain."""
        done = self.oracle.run("nft", "-j", "list", "map", FAMILY[version], "qubes-firewall", "qubes", check=False)
        found = json.loads(done.stdout)["nftables"] if not done.returncode else []
        keys = [key for entry in found for key, _ in entry.get("map", {}).get("elem", ())]
        return {key["elem"]["val"] if isinstance(key, dict) else key for key in keys}

    def named(self, name: str, version: int = 4) -> set[str]:
        """The addresses in the set of a name."""
        words = ("nft", "-j", "list", "set", FAMILY[version], "qubes-firewall", f"n-{name}")
        done = self.oracle.run(*words, check=False)
        found = json.loads(done.stdout)["nftables"] if not done.returncode else []
        return {element for entry in found for element in entry.get("set", {}).get("elem", ())}

    def passes(self, behind: Client, dport: int = 9, version: int = 4) -> bool:
        """Whether a datagram of the qube comes out at the world's end, within the time that it takes."""
        outside, word = self.outside(), f"p{dport}"
        source, target = (behind.ip, WORLD) if version == 4 else (behind.ip6, WORLD6)
        # Each time another connection, so that it is new and the rules judge it.
        self._sport += 1
        behind.port.send(source, target, word, dport=dport, sport=self._sport)
        return outside.hears(lambda packet: (packet.word, packet.target) == (word, target), 0.4)


def _write(store: qubesdb.Store, address: str, rules: Iterable[str], policy: str) -> None:
    store.rm(f"/qubes-firewall/{address}/")
    store.write(f"/qubes-firewall/{address}/policy", policy.encode())
    for number, rule in enumerate(rules):
        store.write(f"/qubes-firewall/{address}/{2 * number:04}", rule.encode())
