# SPDX-License-Identifier: GPL-2.0-or-later
"""Every adapter × its errors (B146): what a running agent asks, and which errors that is made to raise.

A row is a place, `module:function`, and one of the errors of that place. A path behind it means calls for what is
below that path. Tests say what makes the agent ask it; a test
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
LOOK_UP = 'GuestnetError("thrown: the socket of the name look-up does not exist")'
LIBRARY = 'ImportError("thrown: another release of a library")'

Row = tuple[str, str]


def rows(table: Iterable[tuple[str, tuple[str, ...]]]) -> list[Row]:
    """One row for each error of each place."""
    return [(f"{SYSTEM}.{place}", error) for place, errors in table for error in errors]


# What the provider's half asks in a pass, and for hotplug.
PROVIDER = rows((
    ("nft.program:tables", (SLOW, RAW, BUG)),
    ("nft.kernel:table_names", (KERNEL, BUG)),
    ("nft.program:named_set", (SLOW,)),
    ("nft.kernel:generation", (KERNEL, RAW)),
    ("nft.kernel:Events.drain", (KERNEL, RAW)),
    ("nft.program:end", (SLOW, REFUSED)),
    ("nft.encode:Transaction.commit", (REFUSED, RAW, BUG)),
    ("netlink.wire:Netfilter.request", (KERNEL, RAW)),
    ("programs:start", (PROGRAM, RAW)),
    ("programs:finish", (PROGRAM,)),
    ("conntrack:purge", (KERNEL, RAW)),
    ("procfs_sysctl:read", (FILE, RAW)),
    ("procfs_sysctl:write", (FILE, RAW)),
    ("vif_records:Folder.all", (FILE,)),
    ("vif_records:Folder.load", (FILE, RAW)),
    ("vif_records:Folder.save", (FILE, FULL)),
    ("vif_records:Folder.names", (FILE, RAW)),
    ("hotplug_socket:Server.accept", (RAW, BUG)),
    ("service_flags:provides", (RAW,)),
    ("netlink.rtnl:Kernel.vifs", (KERNEL, RAW)),
    ("netlink.rtnl:Kernel.link_named", (KERNEL, GONE)),
    ("transient_unit:start", (PROGRAM,)),
    ("dir_watch:Folders.watch", (RAW,)),
    ("dir_watch:folders", (RAW,)),
))  # fmt: skip
# What a provider asks once: in its first passes, or when that role comes.
FIRST = rows((
    ("nft.families:there", (KERNEL, RAW)),
    ("nft.guard:Guard.stand", (KERNEL, RAW)),
    ("nft.batch:commit", (RAW,)),
    ("nft.kernel:Events.__init__", (KERNEL,)),
    ("hotplug_socket:Server.__init__", (FILE,)),
    ("root_socket:listen", (FILE,)),
    ("nft.foreign_chains:hooked", (SLOW, RAW)),
    ("nft.foreign_chains:legacy", (FILE, RAW)),
    ("nft.foreign_chains:rules", (SLOW,)),
    ("devices:listed", (KERNEL,)),
))  # fmt: skip
# The same of a qube that provides nothing.
FIRST_PLAIN = rows((
    ("nft.kernel:Events.__init__", (KERNEL,)),
    ("dir_watch:Folder.__init__", (RAW,)),
))  # fmt: skip
# What it asks when that role goes, and comes again.
AGAIN = rows((
    ("nft.guard:Guard.leave", (RAW,)),
    ("nft.guard:Guard.stand", (KERNEL,)),
    ("nft.batch:commit", (RAW,)),
    ("netlink.wire:opened", (RAW,)),
))  # fmt: skip
# What every pass asks.
EVERYWHERE = rows((
    ("netlink.rtnl:Kernel.links", (KERNEL, RAW)),
    ("netlink.rtnl:Kernel.observe", (KERNEL, GONE, BUG)),
    ("netlink.rtnl:Kernel.apply", (KERNEL, GONE, RAW)),
    ("netlink.rtnl:Kernel.neighbour_state", (KERNEL, RAW)),
    ("netlink.rtnl:Events.drain", (KERNEL, RAW)),
    ("netlink.rtnl:Events.neighbours", (KERNEL,)),
    ("netlink.wire:drain", (KERNEL, RAW)),
    ("files:read", (FILE, RAW)),
    ("files:facts", (FILE, RAW)),
    ("files:publish", (FILE, FULL, RAW)),
    ("owned_state:Ledger.__enter__", (FILE, RAW)),
    ("owned_state:Ledger.save", (FULL, RAW)),
    ("agent_status:publish", (FULL, RAW)),
    ("systemd:notify", (RAW,)),
    ("systemd_sysctl:apply", (PROGRAM, RAW)),
    ("service_flags:flags", (RAW,)),
    ("guestnet_toml:configured_style", (FILE, 'ConfigError("/thrown: bad")')),
    ("networkmanager:facts", (FILE, RAW)),
    ("networkmanager:profiles", (FILE, RAW)),
    ("qubesdb.direct:DirectStore.multiread", (STORE, RAW)),
    ("qubesdb.direct:DirectWatches.drain", (STORE, RAW)),
    ("qubesdb.store:connect", (STORE, RAW)),
    ("qubesdb.store:connect_watches", (STORE, RAW)),
    ("signals:Signals.poll", (RAW,)),
    ("dir_watch:Folders.watch", (RAW,)),
    ("deferred_imports:submodule", (LIBRARY, BUG)),
    ("tunnels:look", (KERNEL, RAW)),
))  # fmt: skip
# The same with the binding of QubesDB.
BINDING = rows((
    ("qubesdb.binding:BindingStore.multiread", (STORE, RAW)),
    ("qubesdb.binding:BindingWatches.drain", (STORE, RAW)),
))  # fmt: skip
# What an uplink asks beside systemd-resolved: by the bus, and without jeepney by resolvectl.
LINK_NAMES = rows((
    ("dbus.bus:Bus.call", (BUS, CROWDED, RAW)),
    ("dbus.resolved:ByBus.link", (BUS, BUG)),
    ("dbus.resolved:ByBus.set", (BUS, RAW)),
    ("dbus.resolved:present", (RAW,)),
))  # fmt: skip
LINK_NAMES_BY_COMMAND = rows((
    ("dbus.resolved:ByCommand.link", (PROGRAM, BUG)),
    ("dbus.resolved:ByCommand.set", (PROGRAM, RAW)),
))  # fmt: skip
# What a provider asks of systemd-resolved, whose servers it follows.
UPSTREAM = rows((
    ("dbus.bus:Bus.drain", (BUS, CROWDED, RAW)),
    ("dbus.bus:Bus.call", (BUS, RAW)),
    ("dbus.resolved:ask", (RAW, BUG)),
    ("dbus.resolved:ByBus.everything", (BUS, RAW, BUG)),
    ("devices:up", (KERNEL, RAW)),
    ("devices:names", (KERNEL, RAW)),
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

# What a provider whose rules have names asks of the look-up.
NAMES = rows((
    ("names_client:LookUp.__init__", (LOOK_UP, RAW)),
    ("names_client:LookUp.read", (LOOK_UP, RAW, BUG)),
    ("guestnet_toml:configured_names", ('ConfigError("/thrown: bad")',)),
))  # fmt: skip

# What a provider asks to enforce a list that dom0 has committed, and to tell of it.
ENFORCED = rows((
    ("conntrack:begun", (KERNEL, RAW, BUG)),
    ("conntrack:end", (KERNEL, RAW, BUG)),
    ("qubesdb.direct:DirectStore.rm /dns/", (STORE, RAW)),
    ("qubesdb.direct:DirectStore.write /dns/", (STORE, RAW)),
    ("qubesdb.direct:DirectStore.read /qubes-firewall-handled/", (STORE, RAW)),
    ("qubesdb.direct:DirectStore.write /qubes-firewall-handled/", (STORE, RAW)),
    ("files:publish /run/qubes-guestnet/judged", (FILE, FULL, RAW)),
))  # fmt: skip

# What it asks for a list that has an error.
NOTICE = rows((("desktop:notify", (PROGRAM, RAW, BUG)),))

ALL = (
    PROVIDER, FIRST, FIRST_PLAIN, AGAIN, EVERYWHERE, BINDING, LINK_NAMES, LINK_NAMES_BY_COMMAND, UPSTREAM, HOOKS,
    MONITOR, HANGING, NAMES, ENFORCED, NOTICE,
)  # fmt: skip

_CHECK, _HOTPLUG, _PURE = "for `check` and `status`", "by the hotplug command, a process of its own", "pure"
# What a running agent does not ask: why, and the modules that import it; another one would make the reason wrong.
NOT_ASKED: Mapping[str, tuple[str, frozenset[str]]] = {
    "fake_address": (_HOTPLUG, frozenset({"cli.vif"})),
    "gateway6": (_CHECK, frozenset({"cli.diagnosis"})),
    "locks": ("before the loop runs, by the command that starts it", frozenset({"cli.vif", "system.agent_status"})),
    "nameserver": (_CHECK, frozenset({"cli.diagnosis"})),
    "netlink.decode": (_PURE, frozenset({"system.netlink.rtnl", "system.netlink.encode"})),
    "netlink.encode": (_PURE, frozenset({"agent.arp_probe", "system.netlink.rtnl"})),
    "nft.encode_firewall": (_PURE, frozenset({"system.nft.encode"})),
    "nft.encode_rules": (_PURE, frozenset({"system.nft.encode", "system.nft.encode_firewall"})),
    "nft.kept": (
        "by `nft.kernel` and `nft.encode`, which have rows",
        frozenset({"system.nft.encode", "system.nft.kernel"}),
    ),
    "nft.expressions": (
        _PURE,
        frozenset({f"system.nft.{each}" for each in ("encode", "encode_firewall", "encode_rules", "guard", "log")}),
    ),
    "nft.log": ("by `firewall log`", frozenset({"cli.firewall_log"})),
    "nft.quoted_address": (_HOTPLUG, frozenset({"system.fake_address"})),
    "other_programs": (_CHECK, frozenset({"cli.diagnosis", "cli.views"})),
    "qubesdb.wire": (_PURE, frozenset({"system.qubesdb.binding", "system.qubesdb.direct"})),
    "retry_pause": ("it catches its library's errors: test_backoff", frozenset({"agent.loop", "uplink.system_bus"})),
    "systemctl": (
        "where systemd runs, which it does in no namespace: B147 has what it refuses",
        frozenset(
            {
                "cli.diagnosis",
                "cli.provider_verbs",
                "cli.verbs",
                "dispatch",
                "provider.dns_redirect",
                "provider.user_rules",
            }
        ),
    ),
    "user_scripts": (
        "by qubes-firewall.service, and for a person",
        frozenset({"provider.firewall", "provider.firewall_unit"}),
    ),
    "xenstore": (_HOTPLUG, frozenset({"cli.vif"})),
}
