# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as argparse sees it: for options, for help, and to say what is wrong.

Loaded only then: argparse takes 10 ms, a fifth of a cold `apply`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from . import __version__
from .cli import VERBS, WAIT_SECONDS, Verb
from .core.styled import AUTO, WHEN
from .errors import printable


class Parser(argparse.ArgumentParser):
    """A parser whose errors show the user's words escaped (behaviour B120), and where the help is."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong on standard error, and end with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}; `{self.prog} --help` explains it\n")


def _seconds(text: str) -> float:
    """A time to wait. Raises ValueError: it is no number, negative, or has no end."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


_seconds.__name__ = "time in seconds"  # argparse names it in its error

OPTIONS: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "print the operations and do none of them"},
    "--boot": {
        "action": "store_true",
        "help": "only for an interface that is attached, and with NetworkManager only for its profile to be written",
    },
    "--json": {"action": "store_true", "help": "print JSON, for programs"},
    "--brief": {"action": "store_true", "help": "a line an interface: name, state, addresses"},
    "--watch": {
        "action": "store_true",
        "help": "go on until Ctrl-C, and print again what changes; with --json a document a line",
    },
    "--color": {
        "choices": WHEN,
        "default": AUTO,
        "metavar": "WHEN",
        "help": "use colour always, never, or (auto, the default) on a terminal unless NO_COLOR is set",
    },
    "--verbose": {"action": "store_true", "help": "tell of each pass, also of one that changes nothing"},
    "--timeout": {
        "type": _seconds,
        "default": WAIT_SECONDS,
        "metavar": "SECONDS",
        "help": "give up after this time (default: %(default)s, dom0 itself gives up after 10)",
    },
}

SHORT = {"--dry-run": "-n", "--json": "-j", "--brief": "-b", "--watch": "-w", "--verbose": "-v"}

# What a verb does, in sentences; `VERBS` has the short form.
_DESCRIPTIONS = {
    "agent": "Follow QubesDB and the kernel, and make the network what dom0 asks for, until SIGTERM. systemd runs it "
    "as "
    "qubes-guestnet.service; a second one is refused.",
    "apply": "Do what `plan` prints: addresses, routes, neighbours and resolv.conf as dom0 asks for; in a qube that "
    "gives "
    "network to others also rules, their interfaces, their DNS and forwarding. Once, and without an agent too.",
    "plan": "Print the operations that `apply` would do, one a line, in the words of ip(8) and nft(8); behind # what "
    "is, what will be, and the reason. Nothing is changed. No line: all is as dom0 asks for.",
    "status": "Show what dom0 asks for, what is there, and the agent. Status 1 when something is wrong: `check` says "
    "what to "
    "do about it.",
    "check": "Name all that is wrong, each by a code, in words and with a remedy; qubes-guestnet(8) lists the codes. "
    "Status 1 when there is an error.",
    "uplink": "Configure the interface of this qube's own network, or take it down. udev and systemd's units call "
    "it; by hand "
    "`apply` does as much as `uplink add`.",
    "wait-uplink": "Return when the interface that dom0 has attached is configured, at once if none is expected; "
    "status 1 when "
    "the time is up. For scripts and units that need the network.",
    "vif": "Set up the interface of a qube behind this one, or clean up after it. Xen's hotplug calls it, with the "
    "interface and "
    "its entry in xenstore in the environment: vif=vif4.0 XENBUS_PATH=backend/vif/4/0.",
    "dns": "Have the virtual DNS addresses of the qubes behind lead to the servers that this qube asks itself. The "
    "agent does it "
    "at each change. Status 100 when nothing changed since it last ran.",
    "rules": "Load the rules against stolen addresses and the base rules of qubes-guestnet, or remove them. "
    "qubes-guestnet-rules.service calls it, in every qube.",
    "forwarding": "Let packets of the qubes behind this one pass, or not.",
}
_ACTIONS = {
    "uplink": {
        "add": "configure INTERFACE if dom0 manages it; another one is left alone",
        "remove": "take INTERFACE down; it stays down until `uplink add`, `apply`, or dom0 attaches it again",
        "stop": "as `remove`, but not when systemd stops the unit only because another one is restarted; only the unit "
        "qubes-network-uplink@ calls it",
    },
    "vif": {
        "online": "let the qube use its addresses, and bring its interface up",
        "offline": "forget the qube's interface: rules, routes, connections",
    },
    "dns": {"sync": "lead them there now"},
    "rules": {
        "load": "load them; what others have in custom-input and custom-forward stays",
        "unload": "forwarding ends, then all of them go; not while the agent runs",
    },
    "forwarding": {
        "on": "all that a provider does, forwarding last; it undoes `off`, an ip_forward=0 set by hand, and what held "
        "forwarding after rules were lost",
        "off": "forwarding ends, and stays off until `on`, also after a restart of the agent",
        "hold": "forwarding ends because the firewall of the qubes is not ready; qubes-guestnet-hold.service calls it",
        "release": "the firewall is ready; qubes-firewall.service calls it. Forwarding starts unless `off` is in force",
    },
}
_INTERFACES = {
    "apply": "only this uplink, such as eth0; without it all, and what is for the qubes behind",
    "plan": "only this uplink, such as eth0; without it all, and what is for the qubes behind",
    "status": "only this one: an uplink such as eth0, or the interface of a qube behind, such as vif4.0",
    "uplink": "its name, such as eth0",
}
_EPILOG = """\
examples:
  qubes-guestnet status            what this qube has
  qubes-guestnet check             what is wrong, and what to do
  qubes-guestnet plan              what `apply` would change
  sudo qubes-guestnet apply        do it
  qubes-guestnet VERB --help       one verb

Exit status: 0 done or nothing to do, 1 failed (status, check: something is wrong), 2 wrong usage,
100 nothing changed (dns sync).

qubes-guestnet(8) has all of it
"""
_WIDTH = 10


def parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse parser; help and completions are made from it."""
    top = Parser(
        prog="qubes-guestnet",
        description="Network agent of a Qubes OS virtual machine: QubesDB to kernel and resolv.conf.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("-V", "--version", action="version", version=f"qubes-guestnet {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        _add(verbs, name, verb)
    return top


def _add(verbs: argparse._SubParsersAction[Parser], name: str, verb: Verb) -> None:
    """One verb, with help for each of its words."""
    sub = verbs.add_parser(name, help=verb.summary, description=_DESCRIPTIONS.get(name, verb.summary))
    for position, word in enumerate(verb.words):
        if position == 0 and verb.choices:
            _add_action(sub, verb.choices, _ACTIONS[name])
        else:
            optional = "?" if word.startswith("[") else None
            plain = word.strip("[]")
            sub.add_argument(plain, nargs=optional, metavar=plain.upper(), help=_INTERFACES[name])
    for option in verb.options:
        names = (SHORT[option], option) if option in SHORT else (option,)
        sub.add_argument(*names, **OPTIONS[option])


def _add_action(sub: Parser, choices: tuple[str, ...], words: dict[str, str]) -> None:
    """The action, and a list of what each does below the rest of the help."""
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
