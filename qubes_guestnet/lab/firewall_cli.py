# SPDX-License-Identifier: GPL-2.0-or-later
"""`qubes-guestnet lab firewall`: the arguments and the output of qvm-firewall."""

from __future__ import annotations

import argparse
from typing import Any

from .caller import with_own_command
from .place import Place

ADD, DELETE, LIST, RESET = "add", "del", "list", "reset"
_EPILOG = """\
a rule is given by values alone:
  ACTION [DSTHOST [PROTO [DSTPORTS | ICMPTYPE]]]
or by these options, in any order; both can be mixed:
  action=         accept or drop
  dsthost=        address, network or name; dst4= and dst6= are synonyms
  proto=          tcp, udp or icmp
  dstports=       port or range, such as 443 or 1200-1400; of tcp and udp
  icmptype=       number, such as 8; of icmp
  specialtarget=  dns: the DNS servers of the qube
  expire=         Unix time, or +SECONDS from now: then the rule is removed
  comment=        text

examples:
  qubes-guestnet lab firewall work
  qubes-guestnet lab firewall work del --rule-no 0
  qubes-guestnet lab firewall work add accept test.example.com tcp 1234
  qubes-guestnet lab firewall work add --before 0 accept expire=+300
  qubes-guestnet lab firewall work reset
"""


def add_parser(subparsers: argparse._SubParsersAction[Any], name: argparse.ArgumentParser) -> None:
    """Add `firewall` to the lab's command line. `args.run(args)` gives the exit status or raises GuestnetError.

    Args:
        subparsers: what `add_subparsers()` of the lab's parser returned.
        name: a parser with the option `--name`.
    """
    text = "list or change the firewall rules of a qube, as qvm-firewall does"
    parser = subparsers.add_parser(
        "firewall", help=text, description=text, parents=[name], epilog=with_own_command(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("qube")
    _output(parser, False)
    actions = parser.add_subparsers(metavar="add | del | list | reset", dest="action")
    parser.set_defaults(run=_firewall, action=LIST, words=[], before=None, rule_no=None)

    def action(verb: str, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(verb, help=text, description=text)
        added.add_argument("--name", default=argparse.SUPPRESS, help="name of the lab")
        return added

    add = action(ADD, "add a rule at the end")
    add.add_argument("--before", type=int, metavar="NUMBER", help="add it before the rule of that number")
    add.add_argument("words", metavar="MATCH", nargs="+", help="the rule")
    delete = action(DELETE, "remove a rule")
    delete.add_argument("--rule-no", type=int, metavar="NUMBER", help="its number")
    delete.add_argument("words", metavar="MATCH", nargs="*", help="the rule, as it was added")
    _output(action(LIST, "list the rules; the default"), argparse.SUPPRESS)
    action(RESET, "remove all rules and accept everything")


def _output(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--raw", action="store_true", default=default, help="print rules as text instead of a table")
    parser.add_argument(
        "-r", "--reload", action="store_true", default=default, help="after that write unchanged rules again"
    )


def _firewall(args: argparse.Namespace) -> int:
    from . import firewall_edits
    from .progress import Display
    from .session_client import ask

    found = ask(
        Place(args.name), "firewall", lambda _text: None, qube=args.qube, action=args.action, words=args.words,
        before=args.before, number=args.rule_no, reload=args.reload,
    )  # fmt: skip
    if args.action != LIST:
        return 0
    if args.raw:
        for rule in found["raw"]:
            print(rule)
    else:
        Display().table(firewall_edits.HEAD, found["rows"])
    return 0
