# SPDX-License-Identifier: GPL-2.0-or-later
"""Verbs of a provider that the boot or a starting qube waits for.

They import only the modules that they need: neither netlink nor those of the uplink.
"""

from __future__ import annotations

import os

from ..core.settings import PROVIDER_KEY
from ..errors import GuestnetError, StoreError
from ..system import service_flags
from ..system.paths import Paths
from . import reading
from .output import complain, say

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .options import Options

PATHS = Paths()


def vif(options: Options) -> int:
    """Run `vif online` or `vif offline` for Xen's hotplug."""
    from . import vif as hotplug

    say((hotplug.online if options.action == "online" else hotplug.offline)(os.environ, PATHS))
    return 0


def rules(options: Options) -> int:
    """Run `load` (load anti-spoofing and base rules) or `unload` (close forwarding, and remove them)."""
    from ..provider.rules import Rules
    from ..system import agent_status

    entries = None
    try:
        entries = reading.entries()
    except StoreError as error:
        if options.action == "load":
            complain((error,))  # rules that do not depend on QubesDB are still loaded
    if options.action == "unload" and entries and entries.get(PROVIDER_KEY) and agent_status.read(PATHS.run).running:
        raise GuestnetError("the resident agent would load them again", "systemctl stop qubes-guestnet")
    ours = Rules(PATHS)
    say(ours.load(entries) if options.action == "load" else ours.unload())
    return 0


def firewall_unit(options: Options) -> int:
    """Run a command of qubes-firewall.service; `start` also runs the users' scripts, without a time limit."""
    from ..provider import firewall_unit as unit

    if options.action == "start":
        provides = service_flags.provides(PATHS.flags) and bool(reading.patiently(reading.entries).get(PROVIDER_KEY))
        steps = unit.start(PATHS, provides=provides)
    elif options.action == "stop":
        from ..core.uplink import unit_jobs as rules
        from ..system import systemctl

        steps = unit.stop(PATHS, rules.parse(systemctl.jobs()) if systemctl.managed() else {})
    else:
        steps = unit.reload(PATHS)
    for words in steps:
        say((words,))
    return 0


def forwarding(options: Options) -> int:
    """Open or close forwarding.

    `on` configures the provider role and then opens forwarding; `off` closes it until `on`. `hold` and `release` close
    and open it for another reason: the firewall of the qubes is not ready, or is ready. Packets are forwarded only if
    neither reason forbids it.
    """
    from ..provider.rules import Rules

    ours, unfiltered = Rules(PATHS), options.action in ("hold", "release")
    if options.action in ("off", "hold"):
        say(ours.close(unfiltered=unfiltered))
        return 0
    from . import verbs

    now = reading.take()
    ours.load(now.entries)  # a pass without rules would configure the uplink, which must then stay down (behaviour B99)
    if unfiltered:
        ours.release()
    else:
        ours.reopen()
        if not now.entries.get(PROVIDER_KEY):
            say(("this qube is not a provider: there is nothing to forward",))
    return verbs.applied(verbs.settling(now, ""))
