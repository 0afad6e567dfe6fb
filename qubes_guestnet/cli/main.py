# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: verbs, exit status, and all printing.

A verb is a row of `VERBS`. A call of the plain form `VERB [WORD…]` goes straight to its function; argparse
(`cli_parser`) is loaded only for options, help and usage errors.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from ..core.namedtuple import NamedTuple
from ..errors import GuestnetError, UsageError, printable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
WAIT_SECONDS = 9.0  # dom0 gives the call 10 s (qubes.WaitForNetworkUplink)


class Options(NamedTuple):
    """What a verb was called with.

    Args:
        interface: name of an interface, "" for all.
        action: of a verb that has several.
        dry_run: change nothing.
        json: print JSON.
        timeout: seconds to wait.
        boot: wait for no more than the boot has to.
        brief: a line an interface.
        watch: print again what changes.
        color: when to use colour: auto, always or never.
        verbose: tell of each pass.
        rest: everything behind `lab`.
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
    rest: tuple[str, ...] = ()


class Verb(NamedTuple):
    """One verb.

    Args:
        run: its function, in `commands`, `view_commands` or `provider_commands`.
        words: names of its positional arguments; one in brackets may be left out.
        choices: what the first word may be, empty where it is free.
        options: long options it takes.
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
    "lab": Verb("lab", (), (), (), "build a small Qubes network in namespaces, for tests"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        0 done or nothing to do; 1 failed, one line on stderr says what and the remedy, or `status` or `check` found an
        error; 2 wrong usage, or an interface that dom0 does not manage; 100 `dns sync`: unchanged since it last ran.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _show_all_characters()
    try:
        verb, options = _plain(arguments) or _parsed(arguments)
        status = _function(verb)(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if error.name not in ("pyroute2", "tenacity"):
            raise
        print(f"qubes-guestnet: {error}; install python3-{error.name}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + 2  # as a shell shows SIGINT
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Standard output: its reader went away, or its disk is full. Keep the interpreter's own flush from failing too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            print(f"qubes-guestnet: standard output: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED


def _open_closed_streams() -> None:
    """Have what is said go nowhere where the caller closed a stream (`>&-`); Python has None for it (B143)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 # as long as the process


def _show_all_characters() -> None:
    """Have standard output escape what its locale cannot show, as standard error does, instead of failing (B120)."""
    encoding = getattr(sys.stdout, "encoding", None)
    if encoding and encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _function(verb: Verb) -> Callable[[Options], int]:
    if verb.run == "agent":
        return _agent
    if verb.run == "lab":
        return _lab
    module: ModuleType
    if verb.run in ("vif", "rules", "forwarding"):
        from . import provider_verbs as module  # the boot or a starting qube waits for them
    elif verb.run in ("status", "check", "monitor"):
        from . import views as module
    else:
        from . import verbs as module  # the agent needs none of them
    function: Callable[[Options], int] = getattr(module, verb.run)
    return function


def _agent(options: Options) -> int:
    from ..agent.loop import Agent
    from ..system import agent_status, systemd
    from ..system.paths import Paths

    paths = Paths()
    systemd.tell_all(options.verbose)
    agent_status.claim(paths.run)
    return Agent(paths).run()


def _lab(options: Options) -> int:
    from ..lab import interruption  # only here: the agent must never load it

    interruption.install()  # first of all: Ctrl-C may come while the rest is loaded
    from ..lab import cli

    status = cli.main(options.rest)
    interruption.finish()
    return status


def _plain(arguments: list[str]) -> tuple[Verb, Options] | None:
    """Arguments without any option; None where argparse has to look at them."""
    verb = VERBS.get(arguments[0]) if arguments else None
    if verb is None:
        return None
    words = arguments[1:]
    if verb.run == "lab":
        return verb, Options(rest=tuple(words))
    required = sum(not name.startswith("[") for name in verb.words)
    if any(word.startswith("-") for word in words) or not required <= len(words) <= len(verb.words):
        return None
    if verb.choices and words[0] not in verb.choices:
        return None
    named = {name.strip("[]"): word for name, word in zip(verb.words, words, strict=False)}
    _check_name(named.get("interface"))
    return verb, Options(interface=named.get("interface", ""), action=named.get("action", ""))


def _check_name(interface: str | None) -> None:
    """Refuse an empty name: it comes from an unset variable of a script, which did not mean all interfaces."""
    if interface == "":
        raise UsageError("the name of the interface is empty", "name one, or leave the argument out where it may be")


def _parsed(arguments: list[str]) -> tuple[Verb, Options]:
    from .parser import parser

    try:
        found = vars(parser().parse_args(arguments))
    except SystemExit:
        sys.stdout.flush()  # after --help; here a closed pipe is told as for every other verb
        raise
    verb = VERBS[found.pop("verb")]
    _check_name(found.get("interface"))
    return verb, Options(**{name: value for name, value in found.items() if value is not None})
