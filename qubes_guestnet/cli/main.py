# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one verb, and exit with its status.

A verb is a row of `options.VERBS`. A call of the plain form `VERB [WORD…]` goes straight to its function; argparse
(`parser`) is loaded only for options, help and usage errors.
"""

from __future__ import annotations

import errno
import os
import sys

from ..errors import GuestnetError, UsageError, printable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from .options import Options, Verb

_FAILED, _USAGE = 1, 2  # as in `options`, which takes 3 ms to load: `--version` does without
_HELP, _VERSION = (["-h"], ["--help"]), (["-V"], ["--version"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        0 done or nothing to do; 1 failed (one line on stderr has the problem and the remedy), or `status` or `check`
        found an error; 2 wrong usage, or an interface that dom0 does not manage; 3 `firewall test`: the packet does
        not pass, 4: the verdict is unknown; 100 `dns sync`: unchanged since its last run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _show_all_characters()
    try:
        if arguments in _HELP or arguments in _VERSION:
            print(_told(arguments))
            status = 0
        else:
            verb, options = _plain(arguments) or _parsed(arguments)
            status = _function(verb)(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return _USAGE
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return _FAILED
    except ModuleNotFoundError as error:
        if error.name not in ("pyroute2", "tenacity"):
            raise
        print(f"qubes-guestnet: {error}; install python3-{error.name}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + 2  # as a shell shows SIGINT
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # The reader of standard output went away, or its disk is full. The interpreter's own flush must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            print(f"qubes-guestnet: standard output: {error.strerror}", file=sys.stderr)
        return _FAILED


def _told(arguments: list[str]) -> str:
    if arguments in _HELP:
        from .help_text import HELP

        return HELP.rstrip("\n")
    from .. import __version__

    return f"qubes-guestnet {__version__}"


def _open_closed_streams() -> None:
    """Open /dev/null for each stream that the caller closed (`>&-`) and that Python set to None (B143)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 # as long as the process


def _show_all_characters() -> None:
    """Make standard output escape characters that its locale lacks, as standard error does, not fail (B120)."""
    encoding = getattr(sys.stdout, "encoding", None)
    if encoding and encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _function(verb: Verb) -> Callable[[Options], int]:
    if verb.run == "agent":
        return _agent
    if verb.run == "lab":
        return _lab
    module: ModuleType
    if verb.run in ("vif", "rules", "forwarding", "firewall_unit"):
        from . import provider_verbs as module  # the boot or a starting qube waits for them
    elif verb.run in ("status", "check", "monitor"):
        from . import views as module
    elif verb.run == "firewall":
        from . import firewall as module
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
    """Return a verb and its options from plain arguments; None if argparse must parse them."""
    if not arguments:
        return None
    from .options import MANY, VERBS, Options

    verb = VERBS.get(arguments[0])
    if verb is None:
        return None
    words = arguments[1:]
    if verb.run == "lab":
        return verb, Options(rest=tuple(words))
    required = sum(not name.startswith("[") for name in verb.words)
    many = verb.words[-1:] == (MANY,)
    if any(word.startswith("-") for word in words) or len(words) < required:
        return None
    if len(words) > len(verb.words) and not many:
        return None
    if verb.choices and words[0] not in verb.choices:
        return None
    if many:
        return verb, Options(action=words[0], arguments=tuple(words[1:]))
    named = {name.strip("[]"): word for name, word in zip(verb.words, words, strict=False)}
    _check_name(named.get("interface"))
    return verb, Options(interface=named.get("interface", ""), action=named.get("action", ""))


def _check_name(interface: str | None) -> None:
    """Refuse an empty name: a script with an unset variable does not mean all interfaces."""
    if interface == "":
        raise UsageError("the name of the interface is empty", "name one, or omit the argument if it is optional")


def _parsed(arguments: list[str]) -> tuple[Verb, Options]:
    from .options import VERBS, Options
    from .parser import parser

    try:
        found = vars(parser().parse_args(arguments))
    except SystemExit:
        sys.stdout.flush()  # after --help; a closed pipe is reported here as for every other verb
        raise
    verb = VERBS[found.pop("verb")]
    _check_name(found.get("interface"))
    if "arguments" in found:
        found["arguments"] = tuple(found["arguments"])
    return verb, Options(**{name: value for name, value in found.items() if value is not None})
