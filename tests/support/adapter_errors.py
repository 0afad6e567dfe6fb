# SPDX-License-Identifier: GPL-2.0-or-later
"""Every adapter × its errors (B146): what a running agent asks, and which errors that is made to raise.

A row is a place, `module:function`, and one of the errors of that place. Tests say what makes the agent ask it; a test
of the budgets compares the rows with the modules in `qubes_guestnet/system`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SYSTEM = "qubes_guestnet.system"
KERNEL = 'KernelError("thrown", errno.EIO)'
GONE = 'Vanished("thrown", errno.ENODEV)'
FILE = 'FileError("/thrown", OSError(errno.EIO, "thrown"))'
FULL = 'FileError("/thrown", OSError(errno.ENOSPC, "thrown: No space left on device"))'
RAW = 'OSError(errno.EMFILE, "thrown: Too many open files")'
SLOW = 'NftError("nft: thrown, no end within 10 s")'
REFUSED = 'Refused("nft: thrown")'
PROGRAM = 'ProgramError("thrown: no end within 5 s")'
STORE = 'StoreError("QubesDB: thrown")'
BUG = 'ValueError("thrown, which no adapter should raise")'
BUS = 'BusError("thrown: no answer within 0.5 s")'
CROWDED = 'Crowded("thrown: no answer within 0.5 s")'
LIBRARY = 'ImportError("thrown: another release of a library")'

Row = tuple[str, str]


def rows(table: Iterable[tuple[str, tuple[str, ...]]]) -> list[Row]:
    """One row for each error of each place."""
    return [(f"{SYSTEM}.{place}", error) for place, errors in table for error in errors]


# What the provider's half asks in a pass, and for hotplug.
PROVIDER = rows((
    ("nft:tables", (SLOW, RAW, BUG)),
    ("nft_kernel:table_names", (KERNEL, BUG)),
    ("nft:named_set", (SLOW,)),
    ("nft_kernel:generation", (KERNEL, RAW)),
    ("nft_kernel:Events.drain", (KERNEL, RAW)),
    ("nft:end", (SLOW, REFUSED)),
    ("netlink_wire:Netfilter.request", (KERNEL, RAW)),
    ("programs:start", (PROGRAM, RAW)),
    ("programs:finish", (PROGRAM,)),
    ("conntrack:purge", (KERNEL, RAW)),
    ("tunables:read", (FILE, RAW)),
    ("tunables:write", (FILE, RAW)),
    ("vifs:Folder.all", (FILE,)),
    ("vifs:Folder.load", (FILE, RAW)),
    ("vifs:Folder.save", (FILE, FULL)),
    ("vifs:Folder.names", (FILE, RAW)),
    ("hotplug_socket:Server.accept", (RAW, BUG)),
    ("services:provides", (RAW,)),
    ("netlink:Kernel.vifs", (KERNEL, RAW)),
    ("netlink:Kernel.link_named", (KERNEL, GONE)),
    ("outside:start", (PROGRAM,)),
    ("wakeups:Folders.watch", (RAW,)),
    ("wakeups:folders", (RAW,)),
))  # fmt: skip
# What a provider asks once: in its first passes, or when that role comes.
FIRST = rows((
    ("nft_families:there", (KERNEL, RAW)),
    ("nft_guard:Guard.stand", (KERNEL, RAW)),
    ("nfnetlink_batch:commit", (RAW,)),
    ("nft_kernel:Events.__init__", (KERNEL,)),
    ("hotplug_socket:Server.__init__", (FILE,)),
    ("root_socket:listen", (FILE,)),
    ("chains:hooked", (SLOW, RAW)),
    ("chains:legacy", (FILE, RAW)),
    ("chains:rules", (SLOW,)),
    ("devices:listed", (KERNEL,)),
))  # fmt: skip
# The same of a qube that provides nothing.
FIRST_PLAIN = rows((
    ("nft_kernel:Events.__init__", (KERNEL,)),
    ("wakeups:Folder.__init__", (RAW,)),
))  # fmt: skip
# What it asks when that role goes, and comes again.
AGAIN = rows((
    ("nft_guard:Guard.leave", (RAW,)),
    ("nft_guard:Guard.stand", (KERNEL,)),
    ("nfnetlink_batch:commit", (RAW,)),
    ("netlink_wire:opened", (RAW,)),
))  # fmt: skip
# What every pass asks.
EVERYWHERE = rows((
    ("netlink:Kernel.links", (KERNEL, RAW)),
    ("netlink:Kernel.observe", (KERNEL, GONE, BUG)),
    ("netlink:Kernel.apply", (KERNEL, GONE, RAW)),
    ("netlink:Kernel.neighbour_state", (KERNEL, RAW)),
    ("netlink:Events.drain", (KERNEL, RAW)),
    ("netlink:Events.neighbours", (KERNEL,)),
    ("netlink_wire:drain", (KERNEL, RAW)),
    ("files:read", (FILE, RAW)),
    ("files:facts", (FILE, RAW)),
    ("files:publish", (FILE, FULL, RAW)),
    ("owned:Ledger.__enter__", (FILE, RAW)),
    ("owned:Ledger.save", (FULL, RAW)),
    ("standing:publish", (FULL, RAW)),
    ("systemd:notify", (RAW,)),
    ("sysctl:apply", (PROGRAM, RAW)),
    ("services:flags", (RAW,)),
    ("services:configured_style", (FILE, 'ConfigError("/thrown: bad")')),
    ("networkmanager:facts", (FILE, RAW)),
    ("networkmanager:profiles", (FILE, RAW)),
    ("qubesdb_direct:DirectStore.multiread", (STORE, RAW)),
    ("qubesdb_direct:DirectWatches.drain", (STORE, RAW)),
    ("qubesdb:connect", (STORE, RAW)),
    ("qubesdb:connect_watches", (STORE, RAW)),
    ("wakeups:Signals.poll", (RAW,)),
    ("wakeups:Folders.watch", (RAW,)),
    ("lean:submodule", (LIBRARY, BUG)),
    ("tunnels:look", (KERNEL, RAW)),
))  # fmt: skip
# The same with the binding of QubesDB.
BINDING = rows((
    ("qubesdb_binding:BindingStore.multiread", (STORE, RAW)),
    ("qubesdb_binding:BindingWatches.drain", (STORE, RAW)),
))  # fmt: skip
# What an uplink asks beside systemd-resolved: by the bus, and without jeepney by resolvectl.
LINK_NAMES = rows((
    ("dbus:Bus.call", (BUS, CROWDED, RAW)),
    ("resolved:ByBus.link", (BUS, BUG)),
    ("resolved:ByBus.set", (BUS, RAW)),
    ("resolved:present", (RAW,)),
))  # fmt: skip
LINK_NAMES_BY_COMMAND = rows((
    ("resolved:ByCommand.link", (PROGRAM, BUG)),
    ("resolved:ByCommand.set", (PROGRAM, RAW)),
))  # fmt: skip
# What a provider asks of systemd-resolved, whose servers it follows.
UPSTREAM = rows((
    ("dbus:Bus.drain", (BUS, CROWDED, RAW)),
    ("dbus:Bus.call", (BUS, RAW)),
    ("resolved:ask", (RAW, BUG)),
    ("resolved:ByBus.everything", (BUS, RAW, BUG)),
    ("devices:up", (KERNEL, RAW)),
))  # fmt: skip
# What a provider asks when its uplink changes and there is a user's hook.
HOOKS = rows((
    ("hooks:facts", (RAW,)),
    ("hooks:start", (FILE, PROGRAM, RAW)),
))  # fmt: skip
# What a follower of the journal is served by.
MONITOR = rows((
    ("monitor_socket:Server.accept", (RAW,)),
    ("monitor_socket:Server.send", (RAW, BUG)),
))  # fmt: skip
# What ends a program that hangs.
HANGING = rows((("program_tree:_found", (RAW,)),))

ALL = (
    PROVIDER, FIRST, FIRST_PLAIN, AGAIN, EVERYWHERE, BINDING, LINK_NAMES, LINK_NAMES_BY_COMMAND, UPSTREAM, HOOKS,
    MONITOR, HANGING,
)  # fmt: skip

_CHECK, _HOTPLUG, _PURE = "for `check` and `status`", "by the hotplug command, a process of its own", "pure"
# What a running agent does not ask: why, and the modules that import it; another one would make the reason wrong.
NOT_ASKED: Mapping[str, tuple[str, frozenset[str]]] = {
    "fakeip": (_HOTPLUG, frozenset({"hotplug"})),
    "gateway6": (_CHECK, frozenset({"diagnosis"})),
    "locks": ("before the loop runs, by the command that starts it", frozenset({"hotplug", "system.standing"})),
    "nameserver": (_CHECK, frozenset({"diagnosis"})),
    "netlink_looking": (_PURE, frozenset({"system.netlink", "system.netlink_messages"})),
    "netlink_messages": (_PURE, frozenset({"prober", "system.netlink"})),
    "nfnetlink_rules": (_HOTPLUG, frozenset({"system.fakeip"})),
    "presence": (_CHECK, frozenset({"diagnosis", "view_commands"})),
    "qubesdb_wire": (_PURE, frozenset({"system.qubesdb_binding", "system.qubesdb_direct"})),
    "unit_jobs": ("by `uplink remove`", frozenset({"commands"})),
    "xenstore": (_HOTPLUG, frozenset({"hotplug"})),
}
