# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line for argparse: options, help and usage errors.

It is loaded only if needed: argparse takes 10 ms, a fifth of a cold `apply`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from .. import __version__
from ..core.render.styled import AUTO, WHEN
from ..errors import printable
from .help_text import EPILOG
from .options import MANY, VERBS, WAIT_SECONDS, Verb


class Parser(argparse.ArgumentParser):
    """A parser whose errors escape the user's words (behaviour B120) and point to the help.

    Attributes:
        intermixed: whether options may stand between the words of a variable-length argument.
    """

    intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; for intermixed options argparse before Python 3.12 calls this method recursively."""
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True

    def error(self, message: str) -> NoReturn:
        """Print the error to standard error, and exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}; `{self.prog} --help` explains it\n")


def _seconds(text: str) -> float:
    """Parse a time to wait. Raises ValueError for a text that is not a finite number of 0 or more."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


_seconds.__name__ = "time in seconds"  # argparse names it in its error

OPTIONS: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "print the operations without carrying them out"},
    "--boot": {
        "action": "store_true",
        "help": "wait only for an attached interface, and with NetworkManager only for its profile",
    },
    "--json": {"action": "store_true", "help": "print JSON, for programs"},
    "--brief": {"action": "store_true", "help": "print one line per interface: name, state, addresses"},
    "--watch": {
        "action": "store_true",
        "help": "run until Ctrl-C, and print changes; with --json one document per line",
    },
    "--color": {
        "choices": WHEN,
        "default": AUTO,
        "metavar": "WHEN",
        "help": "use colour always, never, or (auto, the default) on a terminal unless NO_COLOR is set",
    },
    "--verbose": {"action": "store_true", "help": "log each pass, even without changes"},
    "--timeout": {
        "type": _seconds,
        "default": WAIT_SECONDS,
        "metavar": "SECONDS",
        "help": "give up after this time (default: %(default)s, dom0 itself gives up after 10)",
    },
}

SHORT = {"--dry-run": "-n", "--json": "-j", "--brief": "-b", "--watch": "-w", "--verbose": "-v"}

# Description of each verb; `VERBS` has the short form.
_DESCRIPTIONS = {
    "agent": "Follow QubesDB and the kernel, and configure the network with dom0's settings, until SIGTERM. systemd "
    "runs it as qubes-guestnet.service; only one agent can run.",
    "apply": "Carry out the operations that `plan` prints, once: addresses, routes, neighbours and resolv.conf from "
    "dom0's settings; in a provider also rules, vifs, the DNS redirection and forwarding. No agent is needed.",
    "plan": "Print the pending operations, one per line, in the syntax of ip(8) and nft(8), each followed by # and the "
    "old value, the new value and the reason. Nothing is changed. No output: the network matches dom0's settings.",
    "status": "Print the desired and the actual state, and the state of the agent. Exit status 1: there is a problem; "
    "see `check`.",
    "monitor": "Print what the resident agent does, as it happens: the cause of each pass, its operations, interfaces "
    "that appear and disappear, errors. Ctrl-C ends it; it waits while the agent restarts. It requires root.",
    "check": "List all problems, each with a code and a remedy; qubes-guestnet(8) explains the codes. Exit status 1: "
    "at least one problem is an error.",
    "uplink": "Configure the interface of this qube's own network, or take it down. udev and systemd units call it; by "
    "hand use `apply`, which includes `uplink add`.",
    "wait-uplink": "Return when the interface that dom0 has attached is configured, and at once if none is expected. "
    "Exit status 1: timeout. It is for scripts and units that need the network.",
    "vif": "Configure the interface of a client qube, or clean up after it. Xen's hotplug calls it, with the interface "
    "and its path in xenstore in the environment: vif=vif4.0 XENBUS_PATH=backend/vif/4/0.",
    "dns": "Redirect the virtual DNS addresses to the upstream servers that this qube uses. The agent does the same "
    "after each change. Exit status 100: no change since the last run.",
    "rules": "Load the anti-spoofing and base rules of qubes-guestnet, or remove them. qubes-guestnet-rules.service "
    "calls it, in every qube.",
    "forwarding": "Open or close forwarding for client qubes.",
    "firewall-unit": "Start, stop or reload the enforcement of qvm-firewall's rules for client qubes. The unit "
    "qubes-firewall.service calls it; by hand use systemctl.",
    "firewall": "Show the lists of rules that dom0 wrote for the client qubes of this provider (qvm-firewall), and "
    "explain what would happen to a packet. QUBE is an address or a vif. Nothing is changed; show, test and log "
    "require root.",
}
_ACTIONS = {
    "uplink": {
        "add": "configure INTERFACE if dom0 manages it; leave other interfaces alone",
        "remove": "take INTERFACE down; it stays down until `uplink add`, `apply`, or dom0 attaches it again",
        "stop": "same as `remove`, unless systemd stops the unit only because of another unit; only the unit "
        "qubes-network-uplink@ calls it",
    },
    "vif": {
        "online": "let the qube use its addresses, and bring its interface up",
        "offline": "remove the qube's rules, routes and connections",
    },
    "dns": {"sync": "redirect the addresses now"},
    "rules": {
        "load": "load the rules; rules of other programs in custom-input and custom-forward stay",
        "unload": "close forwarding, then remove all rules; fails while the agent of a provider runs",
    },
    "forwarding": {
        "on": "configure the provider role, then open forwarding; it reverts `off` and an ip_forward=0 set by hand, "
        "and ends a hold after lost rules",
        "off": "close forwarding until `on`, even after a restart of the agent",
        "hold": "close forwarding while the firewall is not ready; qubes-guestnet-hold.service calls it",
        "release": "report the firewall as ready, and open forwarding unless `off` is in force; "
        "qubes-firewall.service calls it",
    },
    "firewall": {
        "show": "[QUBE]: print each entry as dom0 wrote it, the packets it decided, its names with their addresses, "
        "and whether the list is in force. Exit status 1: a list is blocked, or only root can see it",
        "test": "QUBE TO [PROTOCOL [PORT | ICMPTYPE]]: follow the first packet of a connection on its whole path, and "
        "name the rule that decides. TO is an address or a name; without PROTOCOL it is a ping. Exit status 0: it "
        "passes; 3: it does not; 4: the verdict depends on a rule that is not understood",
        "log": "[QUBE] [SECONDS]: print each packet that the list of QUBE, or any list, refuses, as it happens, for "
        "SECONDS (by default 60; at most 3600) or until Ctrl-C; nothing is left behind",
        "print": "[FILE]: print the tables of all lists as nft loads them; FILE has lines `/qubes-firewall/… = value`, "
        "- is standard input; default: the lists of this provider. Exit status 1: a list has errors",
    },
}
_ACTIONS["firewall-unit"] = {
    "start": "refuse everything, run the users' firewall scripts, load the rules of all qubes, then open forwarding; "
    "rules that are already in force stay in force",
    "stop": "close forwarding and refuse everything, unless systemd restarts the unit",
    "reload": "load all rules again, and return when they are in force",
}
_MANY = {"firewall": "arguments of the action, see below"}
_INTERFACES = {
    "apply": "only this uplink, such as eth0; default: all, and the vifs of client qubes",
    "plan": "only this uplink, such as eth0; default: all, and the vifs of client qubes",
    "status": "only this interface: an uplink such as eth0, or a vif such as vif4.0",
    "uplink": "its name, such as eth0",
}
_WIDTH = 10


def parser() -> argparse.ArgumentParser:
    """Return the argparse parser of the whole command line; help and completions are derived from it."""
    top = Parser(
        prog="qubes-guestnet",
        description="Network agent of a Qubes OS virtual machine: QubesDB to kernel and resolv.conf.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("-V", "--version", action="version", version=f"qubes-guestnet {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        _add(verbs, name, verb)
    return top


def _add(verbs: argparse._SubParsersAction[Parser], name: str, verb: Verb) -> None:
    """Add a verb, with help for each of its words."""
    sub = verbs.add_parser(name, help=verb.summary, description=_DESCRIPTIONS.get(name, verb.summary))
    sub.intermixed = MANY in verb.words
    for position, word in enumerate(verb.words):
        if position == 0 and verb.choices:
            _add_action(sub, verb.choices, _ACTIONS[name])
        elif word == MANY:
            sub.add_argument("arguments", nargs="*", metavar="ARGUMENT", help=_MANY[name])
        else:
            optional = "?" if word.startswith("[") else None
            plain = word.strip("[]")
            sub.add_argument(plain, nargs=optional, metavar=plain.upper(), help=_INTERFACES[name])
    for option in verb.options:
        names = (SHORT[option], option) if option in SHORT else (option,)
        sub.add_argument(*names, **OPTIONS[option])


def _add_action(sub: Parser, choices: tuple[str, ...], words: dict[str, str]) -> None:
    """Add the action, and the list of actions below the rest of the help."""
    sub.add_argument("action", choices=choices, metavar="ACTION", help=f"one of {', '.join(choices)}, see below")
    lines = []
    for action in choices:
        begin = f"  {action:{_WIDTH}}"
        for line in _wrapped(words[action], 76 - _WIDTH):
            lines.append(begin + line)
            begin = " " * (_WIDTH + 2)
    sub.formatter_class = _WithList
    sub.epilog = "actions:\n" + "\n".join(lines)


class _WithList(argparse.HelpFormatter):
    """Wraps what is a paragraph, and leaves a list as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap  # loaded by argparse anyway

    return textwrap.wrap(text, width)
