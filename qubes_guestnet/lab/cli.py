# SPDX-License-Identifier: GPL-2.0-or-later
"""`qubes-guestnet lab …`: qubes in namespaces, without root, without Xen, without Qubes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..cli.parser import Parser
from ..errors import GuestnetError, UsageError, printable
from . import interruption, session_cli, store_cli
from .caller import with_own_command

_EPILOG = """\
examples:
  qubes-guestnet lab demo            one qube gets its network, step by step
  qubes-guestnet lab run             every scenario
  qubes-guestnet lab run S-000 S-40  those whose name begins with one of these
  qubes-guestnet lab run --list      list the scenarios
  qubes-guestnet lab up default      a tree of qubes to try; see `lab up --help`

forms of a scenario: S-000 plain (IPv4, device route), S-000-6 with IPv6, S-000-g with the gateway route, S-000-6g both;
`lab run S-000` plays all of them

exit status: 0 success, 1 a step or scenario failed, 2 wrong usage; of `exec` that of the command
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line of the lab."""
    top = Parser(
        prog="qubes-guestnet lab", description=__doc__, epilog=with_own_command(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    def show_help(_args: argparse.Namespace) -> int:
        top.print_help()
        return 0

    top.set_defaults(run=show_help)
    verbs = top.add_subparsers(metavar="VERB")
    demo = verbs.add_parser("demo", help="one qube gets its network from QubesDB, step by step",
                            description="Show one qube getting its network, live, and print a table.")  # fmt: skip
    demo.add_argument("--json", action="store_true", help="print only the final table, as JSON")
    demo.set_defaults(run=_demo)
    run = verbs.add_parser("run", help="play scenarios, end to end, with real packets",
                           description="Play scenarios, each in a lab of its own, and print a table.")  # fmt: skip
    run.add_argument(
        "scenario", nargs="*",
        help="begin of a name, such as S-000 or S-40; default: all. A suffix is a form: -6 with IPv6, "
        "-g with the gateway route, -6g with both",
    )  # fmt: skip
    run.add_argument("--list", action="store_true", help="only list them")
    run.add_argument("--json", action="store_true", help="print only the final table, as JSON")
    run.set_defaults(run=_run)
    session_cli.add_parsers(verbs)
    store_cli.add_parsers(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qubes-guestnet lab ARGV`; return the exit status."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UsageError as error:
        print(f"qubes-guestnet lab: {printable(with_own_command(str(error)))}", file=sys.stderr)
        return 2
    except GuestnetError as error:
        print(f"qubes-guestnet lab: {printable(with_own_command(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # where the command is a part of another program, which has its own handler
        interruption.say()
        return interruption.STATUS


def _demo(args: argparse.Namespace) -> int:
    from .demo import main as show  # the store verbs start faster without it

    return show(as_json=args.json)


def _run(args: argparse.Namespace) -> int:
    from .runner import main as play

    return play(args.scenario, only_list=args.list, as_json=args.json)
