# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of an interactive lab: `up`, `exec`, `set`, `feature`, `firewall`, `status`, `diagram`, `down`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import FileError, UsageError
from . import firewall_cli
from .caller import with_own_command
from .place import DEFAULT, Place, named

_NONE = "none"
_UNKNOWN = "-"
_REACHES = {True: "yes", False: "no", None: _UNKNOWN}
_HEAD = ("qube", "state", "provider", "IPv4", "IPv6", "agent", "addresses")
_UP_EPILOG = """\
examples:
  qubes-guestnet lab up ipv6-feature          a tree that comes with the program
  qubes-guestnet lab up mine.toml --name b    one of your own, beside it
  qubes-guestnet lab exec work -- ping -c 3 test.example.com
  qubes-guestnet lab set work netvm none
  qubes-guestnet lab diagram -o tree.svg
  qubes-guestnet lab down
"""


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add these verbs to the lab's command line. `args.run(args)` gives the exit status or raises GuestnetError."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default=DEFAULT, help="name of the lab (default: %(default)s)")

    def verb(name: str, run: Any, text: str, **more: Any) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = subparsers.add_parser(
            name, help=text, description=text, parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        added.set_defaults(run=run)
        return added

    up = verb("up", _up, "start a tree of qubes in the background", epilog=with_own_command(_UP_EPILOG))
    up.add_argument("tree", nargs="?", help="a TOML file, or the name of a bundled tree")
    up.add_argument("--list", action="store_true", help="only list the bundled trees")
    _json(up, "print the list or the table as JSON")
    run = verb("exec", _exec, "run a command in a qube; its exit status is passed through")
    run.add_argument("qube")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] COMMAND…")
    change = verb("set", _set, "change the provider of a qube, as qvm-prefs does")
    change.add_argument("qube")
    change.add_argument("property", choices=["netvm"])
    change.add_argument("value", metavar="OTHER|none")
    feature = verb("feature", _feature, "change a feature of a qube, as qvm-features does")
    feature.add_argument("qube")
    feature.add_argument("feature", choices=["ipv6"])
    feature.add_argument("value", nargs="?", choices=["1", ""], metavar="1|''", help="on, off")
    feature.add_argument("--unset", action="store_true", help="inherit it from the provider")
    feature.add_argument(
        "--restart", action="store_true", help="restart the qubes concerned, so that the change takes effect"
    )
    firewall_cli.add_parser(subparsers, common)
    status = verb("status", _status, "print each qube's state, provider, reach and addresses")
    status.add_argument(
        "--no-measure", action="store_true", help="send no packets to measure which qubes reach the world"
    )
    _json(status, "print the same as JSON")
    diagram = verb(
        "diagram",
        _diagram,
        "draw the tree as SVG; a qube that does not reach what dom0 gave it is red",
    )
    diagram.add_argument("-o", "--output", default="-", metavar="FILE", help="output file (default: standard output)")
    verb("down", _down, "end the lab and remove everything in it")


def _json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _up(args: argparse.Namespace) -> int:
    from . import interruption, session_client, tree
    from .progress import Display

    if args.list:
        return _list(args.json)
    if args.tree is None:
        raise UsageError("the tree is missing", f"give a file, or one of {', '.join(tree.names())}")
    grown = tree.load(args.tree)
    place = Place(args.name)
    display = Display(sys.stderr if args.json else None)

    def step(text: str) -> None:
        display.end(held=True)
        display.begin(text)

    try:
        end_it = session_client.up(grown, place, step, display.tick)
    except BaseException:
        display.end(held=False)
        raise
    step("the lab measures which qubes reach the world")
    found = session_client.ask(place, "status", _quiet, measure=True)
    display.end(held=True)
    interruption.remove(end_it)
    _show(found, args.json)
    if not args.json:
        display.line()
        first, name = grown.qubes[-1].name, named(args.name)
        display.line(" The lab stays up. To open a shell in a qube, and to end the lab:")
        for words in (f"exec{name} {first} -- bash", f"down{name}"):
            display.line(f"   {with_own_command('qubes-guestnet lab')} {words}")
    return 0


def _list(as_json: bool) -> int:
    from . import tree
    from .progress import Display

    trees = {name: [spec.name for spec in tree.load(name).qubes] for name in tree.names()}
    if as_json:
        print(json.dumps(trees, indent=2))
    else:
        Display().table(("tree", "qubes"), [(name, " ".join(qubes)) for name, qubes in trees.items()])
    return 0


def _exec(args: argparse.Namespace) -> int:
    from .session_client import execute

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError(
            "the command is missing", f"for a shell: qubes-guestnet lab exec{named(args.name)} {args.qube} -- bash"
        )
    return execute(Place(args.name), args.qube, command)


def _set(args: argparse.Namespace) -> int:
    netvm = None if args.value in (_NONE, "") else args.value
    _ask(args, "set", qube=args.qube, netvm=netvm)
    return 0


def _feature(args: argparse.Namespace) -> int:
    if args.unset == (args.value is not None):
        raise UsageError("give exactly one of 1, '' and --unset")
    found = _ask(args, "feature", qube=args.qube, feature=args.feature, value=args.value, restart=args.restart)
    if found["unaware"]:
        print(f"As in Qubes, the change takes effect at a restart of {', '.join(found['unaware'])}: see --restart")
    return 0


def _ask(args: argparse.Namespace, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask for something that takes its time, showing how it goes on."""
    from .progress import Display
    from .session_client import ask

    display = Display()

    def step(text: str) -> None:
        display.end(held=True)
        display.begin(text)

    try:
        found = ask(Place(args.name), verb, step, **arguments)
    except BaseException:
        display.end(held=False)
        raise
    display.end(held=True)
    return found


def _status(args: argparse.Namespace) -> int:
    from .session_client import ask

    _show(ask(Place(args.name), "status", _quiet, measure=not args.no_measure), args.json)
    return 0


def _quiet(_text: str) -> None:
    return


def _show(found: dict[str, Any], as_json: bool) -> None:
    from .progress import Display

    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        (
            qube["name"], qube["state"], qube["netvm"] or ("the world" if qube["world"] else _UNKNOWN),
            _REACHES[qube["ipv4"]], _REACHES[qube["ipv6"]], qube["agent"], " ".join(qube["addresses"]) or _UNKNOWN,
        )
        for qube in found["qubes"]
    ]  # fmt: skip
    Display().table(_HEAD, rows, apart=True)


def _diagram(args: argparse.Namespace) -> int:
    from . import diagram
    from .session_client import ask

    found = ask(Place(args.name), "status", _quiet, measure=True)
    text = diagram.draw(found["tree"], [diagram.Node.of(qube) for qube in found["qubes"]])
    if args.output == "-":
        print(text, end="")
        return 0
    try:
        Path(args.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(args.output, error, "give a file that can be written") from error
    return 0


def _down(args: argparse.Namespace) -> int:
    from .session_client import down

    if not down(Place(args.name)):
        print(f"lab {args.name} had ended already; removed its leftovers", file=sys.stderr)
    return 0
