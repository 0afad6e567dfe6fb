# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube for the tests of `reconcile`: the kernel's model, files in a temporary folder, entries as a dictionary."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from qubes_guestnet.core import owned_state
from qubes_guestnet.core.report import InterfaceReport, Report
from qubes_guestnet.core.values import BACKEND_MAC, Link, Neighbour, Route, State
from qubes_guestnet.reconcile import Pass, Paths, plan_only, reconcile
from tests.core.model import Interface, Model
from tests.support.faults.hostile import GOOD, MAC

OTHER_MAC = "00:16:3e:5e:6c:01"
FOREIGN = State(
    addresses=frozenset({ipaddress.ip_interface("192.168.7.7/24"), ipaddress.ip_interface("fd77::7/64")}),
    neighbours=frozenset({Neighbour(ipaddress.ip_address("192.168.7.1"), "02:00:00:00:00:01", permanent=False)}),
    routes=frozenset(
        {
            Route(ipaddress.ip_network("10.8.0.0/16"), ipaddress.ip_address("192.168.7.1"), protocol=3),
            Route(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("192.168.7.1"), metric=50, protocol=4),
            Route(ipaddress.ip_network("::/0"), ipaddress.ip_address("fd77::1"), metric=50, protocol=4),
        }
    ),
)


def eth0(state: State | None = None, *, index: int = 2, name: str = "eth0", mac: str = MAC) -> Interface:
    """An interface as Xen brings it, with whatever is on it already."""
    return Interface(Link(index, name, mac, running=True, driver="vif"), state)


def with_foreign() -> Interface:
    """An interface that is up and on which others have been at work."""
    return eth0(FOREIGN._replace(up=True))


class Qube:
    """A qube.

    Args:
        folder: for its files.
        interfaces: that it has.

    Attributes:
        entries: its QubesDB.
        kernel: the model.
        paths: its files.
    """

    def __init__(self, folder: Path, *interfaces: Interface) -> None:
        self.entries: dict[str, bytes] = dict(GOOD)
        self.kernel = Model(*interfaces)
        self.folder = folder
        for name in ("etc", "flags"):
            (folder / name).mkdir()
        self.paths = Paths(
            run=str(folder / "run"),
            resolv_conf=str(folder / "etc" / "resolv.conf"),
            flags=str(folder / "flags"),
            config=str(folder / "etc" / "guestnet.toml"),
        )

    def run(self, *, dry_run: bool = False, **asked: Any) -> Report:
        """One pass; `asked` as in `Pass`. The kernel's log begins anew."""
        self.kernel.log.clear()
        asked.setdefault("present", self.kernel.interfaces)  # nothing has come since the entries were read
        return (plan_only if dry_run else reconcile)(self.entries, self.kernel, self.paths, Pass(**asked))

    def flag(self, name: str) -> None:
        """Set a qvm-service flag."""
        Path(self.paths.flags, name).touch()

    @property
    def log(self) -> list[str]:
        """What the last pass asked of the kernel, in `ip` words."""
        return [str(op) for op in self.kernel.log]

    @property
    def resolv_conf(self) -> Path:
        """Its resolv.conf."""
        return Path(self.paths.resolv_conf)

    @property
    def record(self) -> owned_state.Record:
        """The record on disk."""
        path = Path(self.paths.run, "owned")
        return owned_state.parse(path.read_bytes()) if path.exists() else owned_state.Record()

    def state(self, index: int = 2) -> State:
        """All that an interface has."""
        return self.kernel.interfaces[index].state()

    def shown(self, index: int = 2) -> set[str]:
        """What an interface has, as short words, without the routes that the kernel makes."""
        state = self.state(index)
        words = {str(address) for address in state.addresses}
        words |= {f"neighbour {entry.address}" for entry in state.neighbours if entry.mac == BACKEND_MAC}
        for route in state.routes:
            if route.protocol != 2:
                way = "device" if route.gateway is None else f"via {route.gateway}"
                words.add(f"{route.destination} {way}{f' metric {route.metric}' if route.metric else ''}")
        return words


def only(report: Report) -> InterfaceReport:
    """The one interface of a report."""
    (interface,) = report.interfaces
    return interface


def words(report: Report) -> list[str]:
    """The errors of a report."""
    return [str(error) for error in report.errors]
