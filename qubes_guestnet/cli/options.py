# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs, their options, and the exit status: one table for the command line, its help and its documents."""

from __future__ import annotations

from ..core.namedtuple import NamedTuple

EXIT_DONE, EXIT_FAILED = 0, 1
EXIT_REFUSED, EXIT_UNCLEAR = 3, 4  # of `firewall test`
WAIT_SECONDS = 9.0  # dom0 gives the call 10 s (qubes.WaitForNetworkUplink)


class Options(NamedTuple):
    """The options and arguments of a call.

    Args:
        interface: name of an interface, "" for all.
        action: the action, for a verb with several.
        dry_run: change nothing.
        json: print JSON.
        timeout: seconds to wait.
        boot: wait only as long as the boot requires.
        brief: print one line per interface.
        watch: print again after each change.
        color: when to use colour: auto, always or never.
        verbose: log each pass.
        arguments: further arguments of the action.
        rest: all words after `lab`.
    """

    interface: str = ""
    action: str = ""
    dry_run: bool = False
    json: bool = False
    timeout: float = WAIT_SECONDS
    boot: bool = False
    brief: bool = False
    watch: bool = False
    color: str = "auto"
    verbose: bool = False
    arguments: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


MANY = "[arguments]"


class Verb(NamedTuple):
    """One verb.

    Args:
        run: its function, in `verbs`, `views` or `provider_verbs`.
        words: names of its positional arguments; one in brackets is optional, and MANY stands for any number.
        choices: valid values of the first word, empty if any is valid.
        options: its long options.
        summary: one line of help.
    """

    run: str
    words: tuple[str, ...]
    choices: tuple[str, ...]
    options: tuple[str, ...]
    summary: str


VERBS: dict[str, Verb] = {
    "agent": Verb("agent", (), (), ("--verbose",), "stay resident and follow QubesDB; systemd runs it"),
    "apply": Verb("apply", ("[interface]",), (), ("--dry-run",), "configure the network with dom0's settings, once"),
    "plan": Verb(
        "plan",
        ("[interface]",),
        (),
        ("--json", "--color"),
        "print the changes that apply would make, one per line",
    ),
    "status": Verb(
        "status",
        ("[interface]",),
        (),
        ("--json", "--brief", "--watch", "--color"),
        "print the desired and the actual state",
    ),
    "monitor": Verb("monitor", (), (), ("--json", "--color"), "follow what the agent does, until Ctrl-C"),
    "check": Verb("check", (), (), ("--json", "--color"), "list problems, with codes and remedies"),
    "uplink": Verb(
        "uplink",
        ("action", "interface"),
        ("add", "remove", "stop"),
        (),
        "configure this qube's own interface, or take it down",
    ),
    "wait-uplink": Verb(
        "wait_uplink", (), (), ("--timeout", "--boot"), "return when the current interface is configured"
    ),
    "vif": Verb(
        "vif",
        ("action",),
        ("online", "offline"),
        (),
        "configure the interface of a client qube; Xen's hotplug calls it",
    ),
    "dns": Verb("dns", ("action",), ("sync",), (), "redirect the virtual DNS addresses to the upstream servers"),
    "rules": Verb("rules", ("action",), ("load", "unload"), (), "load or remove anti-spoofing and base rules"),
    "forwarding": Verb(
        "forwarding", ("action",), ("on", "off", "hold", "release"), (), "open or close forwarding for client qubes"
    ),
    "firewall-unit": Verb(
        "firewall_unit",
        ("action",),
        ("start", "stop", "reload"),
        (),
        "switch the enforcement of qvm-firewall's rules on or off; qubes-firewall.service calls it",
    ),
    "firewall": Verb(
        "firewall",
        ("action", MANY),
        ("show", "test", "log", "print"),
        ("--json", "--color"),
        "show what client qubes may do, and explain why a packet is refused",
    ),
    "lab": Verb("lab", (), (), (), "build a small Qubes network in namespaces, for tests"),
}
