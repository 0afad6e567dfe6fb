# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up beside a provider's agent, started by its socket, and a name server in the world."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from qubes_guestnet.lab.name_socket import PROGRAM
from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import LAN, ROUTER

SOCKET = "/run/qubes-guestnet/names.sock"
KNOWN = "/run/qubes-guestnet/names"
SECOND = "192.168.0.3"  # another name server in the world
HOSTS = "/run/lab/hosts"


# The agent's clock of names runs faster: a name is asked for each second, and what left an answer goes after one more.
_HASTE = """
from qubes_guestnet.core.firewall import name_cache
name_cache.SHORTEST = name_cache._GRID = name_cache.LINGER = name_cache.FIRST_RETRY = 1
name_cache.APART = {apart}
from qubes_guestnet.core.firewall import name_settings
name_settings.LEAST = 1
"""
_FOLDER = "/run/lab/haste"


def hastened(host: Enforcing, apart: int = 2) -> dict[str, str]:
    """An environment for the agent, in which times to live are over within seconds.

    Args:
        host: the provider.
        apart: seconds between two answers that a name does not exist, for it to be forgotten.
    """
    host.qube.write(f"{_FOLDER}/sitecustomize.py", _HASTE.format(apart=apart))
    return {"PYTHONPATH": ":".join((_FOLDER, *sys.path))}


class NamesUnit:
    """The socket, and the program behind it.

    Args:
        host: the provider.
        arguments: of Python; the program by default.
    """

    def __init__(self, host: Enforcing, arguments: Sequence[str] = PROGRAM) -> None:
        self._host = host
        command = (sys.executable, "-m", "qubes_guestnet.lab.name_socket", *arguments)
        self._service = host.qube.spawn("names", *command)
        eventually(lambda: host.qube.path(SOCKET).exists(), trouble=self._service.output)

    @property
    def starts(self) -> int:
        """How often the program was started."""
        return self._service.output().count("started ")

    def log(self) -> str:
        """What it wrote."""
        return self._service.output()

    def stop(self) -> None:
        """Take the socket away with the program, as a masked unit is."""
        self._host.qube.run("rm", "-f", SOCKET)
        self._service.kill()
        words = self._service.output().split()
        last = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "started"][-1:]
        self._host.qube.run("kill", "-9", *last, check=False)  # it may have ended by itself


class NameServer:
    """dnsmasq in the world.

    Args:
        host: the provider.
        at: its address.
        ttl: of all records, in seconds.
    """

    def __init__(self, host: Enforcing, at: str = ROUTER, ttl: int = 300) -> None:
        needs("dnsmasq")
        self._host, self._file = host, f"{HOSTS}.{at}"
        if at != ROUTER:
            host.world.wire(f"ip address add {at}/24 dev {LAN}")
        host.world.write(self._file, "")
        command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--local-ttl={ttl}"]
        command += ["--bind-interfaces", f"--listen-address={at}", "--local=/#/", f"--addn-hosts={self._file}"]
        self._service: Service = host.world.spawn(f"dnsmasq-{at}", *command, "--log-queries")
        eventually(lambda: f"read {self._file}" in self._service.output(), 20, trouble=self._service.output)

    def says(self, **names: Sequence[str]) -> None:
        """Have these names, and no others, with these addresses.

        Args:
            names: without their zone, `example.org`.
        """
        lines = (f"{address} {name}.example.org\n" for name, addresses in names.items() for address in addresses)
        before = self._service.output().count(f"read {self._file}")
        self._host.world.write(self._file, "".join(lines))
        eventually(lambda: self._loaded(before), trouble=self._service.output)

    def log(self) -> str:
        """What it wrote."""
        return self._service.output()

    def _loaded(self, before: int) -> bool:
        self._service.signal(signal.SIGHUP)
        return self._service.output().count(f"read {self._file}") > before

    @property
    def asked(self) -> int:
        """How many questions have come."""
        return self._service.output().count(" query[A")

    def pause(self) -> None:
        """It hangs."""
        self._service.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        self._service.signal(signal.SIGCONT)
