# SPDX-License-Identifier: GPL-2.0-or-later
"""An independent judge of the kernel's state: `ip -json`, `nft -j` and sockets. It never imports what it judges."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from qubes_guestnet.lab.patience import patient
from tests.support.needs import SBIN

Json = dict[str, Any]
COMMAND_LIMIT_S = 20


class Oracle:
    """Looks into one network namespace.

    Args:
        prefix: what to put before each command to run it inside, such as ("nsenter", "-t", "4711", "-n"); empty: here.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = tuple(prefix)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside. C locale, bounded in time."""
        environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{SBIN}"}
        result = subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=patient(COMMAND_LIMIT_S), env=environment
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {result.returncode}: {result.stderr.strip()}")
        return result

    def ip(self, *arguments: str) -> list[Json]:
        """`ip -json -details ARGUMENTS`; empty objects, which old iproute2 prints for filtered entries, left out."""
        result = self.run("ip", "-json", "-details", *arguments, check=False)
        if result.returncode:
            if "does not exist" in result.stderr or "Cannot find device" in result.stderr:
                return []
            raise AssertionError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
        return [entry for entry in json.loads(result.stdout or "[]") if entry]

    def link(self, interface: str) -> Json | None:
        """The interface, or None when there is none of that name."""
        links = self.ip("link", "show", "dev", interface)
        return links[0] if links else None

    def is_up(self, interface: str) -> bool:
        """Administratively up."""
        link = self.link(interface)
        return link is not None and "UP" in link["flags"]

    def addresses(self, interface: str, family: int | None = None) -> set[str]:
        """All addresses as "10.137.0.5/32", without the kernel's own link-local ones."""
        found = self.ip("address", "show", "dev", interface)
        return {
            f"{address['local']}/{address['prefixlen']}"
            for link in found
            for address in link.get("addr_info", ())
            if not (address["family"] == "inet6" and address["scope"] == "link")
            and family in (None, 4 if address["family"] == "inet" else 6)
        }

    def routes(self, family: int = 4, interface: str | None = None) -> list[Json]:
        """The main table of a family. IPv6: without the kernel's multicast and link-local routes."""
        device = ("dev", interface) if interface else ()
        return [
            route
            for route in self.ip(f"-{family}", "route", "show", *device)
            if not str(route["dst"]).startswith(("fe80::/", "ff00::/", "multicast"))
        ]

    def default_routes(self, family: int = 4) -> list[Json]:
        """The default routes of a family, of all interfaces."""
        return [route for route in self.routes(family) if route["dst"] == "default"]

    def neighbours(self, interface: str, *, permanent: bool = True) -> dict[str, str]:
        """Address → MAC; the permanent entries, or with permanent=False all that have a MAC."""
        return {
            entry["dst"]: entry["lladdr"]
            for family in ("-4", "-6")
            for entry in self.ip(family, "neighbour", "show", "dev", interface)
            if "lladdr" in entry and (not permanent or "PERMANENT" in entry.get("state", ()))
        }

    def ruleset(self) -> list[Json]:
        """`nft -j list ruleset`, one object each."""
        objects = json.loads(self.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        return [entry for entry in objects if "metainfo" not in entry]

    def reaches(self, address: str, *, within_s: int = 2) -> bool:
        """Whether one ping is answered."""
        return self.run("ping", "-n", "-c", "1", "-W", str(within_s), address, check=False).returncode == 0
