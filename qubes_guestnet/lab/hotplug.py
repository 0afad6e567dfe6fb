# SPDX-License-Identifier: GPL-2.0-or-later
"""The real provider role in a qube of the lab, called as Xen's hotplug calls it, with a fake xenstore."""

from __future__ import annotations

from . import xenstore
from .namespaces import LabError
from .provider import Networking, Vif
from .qube import Qube, eventually

CONNECTED = "connected"
_LATE_SECONDS = 10.0


class Hotplug(Networking):
    """A provider that runs qubes-guestnet.

    Args:
        qube: the provider; its base rules are loaded here, before it has any network.
    """

    def __init__(self, qube: Qube) -> None:
        super().__init__(qube)
        xenstore.install(qube)
        qube.guestnet("rules", "load")

    def plug(self, vif: Vif) -> None:
        """Add the device, and its data to xenstore."""
        super().plug(vif)
        nodes = {"mac": vif.mac, "type": "vif", "ip": addresses(vif), "handle": str(vif.number)}
        xenstore.fill(self.qube, folder(vif), nodes)

    def online(self, vif: Vif) -> None:
        """Run `vif online`; LabError, with the error in xenstore, if it did not connect the vif."""
        done = self._call("online", vif)
        status = xenstore.node(self.qube, f"{folder(vif)}/hotplug-status")
        if done or status != CONNECTED:
            error = xenstore.node(self.qube, f"{folder(vif)}/hotplug-error")
            raise LabError(f"{self.qube.name}: {vif.name} has hotplug-status {status!r}: {error or done}", self._log())

    def connect(self, vif: Vif, qube: Qube, interface: str) -> None:
        """Wait until the provider's hotplug reports the vif as connected, then give the qube its end, as Xen does."""
        status = f"{folder(vif)}/hotplug-status"
        try:
            eventually(
                f"{vif.name} is {CONNECTED}", lambda: xenstore.node(self.qube, status) == CONNECTED, _LATE_SECONDS
            )
        except LabError as error:
            told = xenstore.node(self.qube, f"{folder(vif)}/hotplug-error") or "no hotplug-error"
            raise LabError(f"{self.qube.name}: {error.problem}: {told}", self._log()) from None
        super().connect(vif, qube, interface)

    def offline(self, vif: Vif) -> None:
        """Run `vif offline`; LabError if it fails."""
        complaint = self._call("offline", vif)
        xenstore.clear(self.qube, folder(vif))
        if complaint:
            raise LabError(f"{self.qube.name}: vif offline of {vif.name}: {complaint}", self._log())

    def _call(self, action: str, vif: Vif) -> str:
        """Return the error, "" for none."""
        environment = {"vif": vif.name, "ip": addresses(vif), "XENBUS_PATH": folder(vif)}
        done = self.qube.guestnet("vif", action, check=False, env=environment)
        return f"exit status {done.returncode}: {done.stderr.strip()}" if done.returncode else ""

    def _log(self) -> str:
        agent = self.qube.agent
        return f"its agent's log:\n{agent.tail(1500)}" if agent is not None else "no agent runs there"


def folder(vif: Vif) -> str:
    """Return the xenstore path of a vif, relative to the provider's own folder."""
    return f"backend/vif/{vif.domain}/{vif.number}"


def addresses(vif: Vif) -> str:
    """Return a vif's addresses as Xen's configuration has them: IPv4 first."""
    return " ".join(address for address in (vif.address, vif.address6) if address)
