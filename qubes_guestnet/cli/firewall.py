# SPDX-License-Identifier: GPL-2.0-or-later
"""The actions `firewall show|test|log|print`: what a client qube may do, and why."""

from __future__ import annotations

import sys

from ..core.firewall import entries, operations, plan
from ..core.firewall.binding import bind
from ..core.firewall.parsing import parse
from ..core.render import firewall_lists
from ..errors import ConfigError, FileError, GuestnetError, UsageError
from ..system.paths import Paths
from . import firewall_ground, reading
from .options import EXIT_DONE, EXIT_FAILED
from .output import complain, print_json, show

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.values import IPAddress
    from .options import Options

PATHS = Paths()
_LONGEST = 16 << 20  # bytes of a file with entries; QubesDB itself holds less
# Arguments of each action: usage, minimum and maximum number.
_USAGE = {
    "show": ("[QUBE]", 0, 1),
    "test": ("QUBE TO [PROTOCOL [PORT | ICMPTYPE]]", 2, 4),
    "log": ("[QUBE] [SECONDS]", 0, 2),
    "print": ("[FILE]", 0, 1),
}


def firewall(options: Options) -> int:
    """Run one action."""
    words, least, most = _USAGE[options.action]
    if not least <= len(options.arguments) <= most or "" in options.arguments:
        raise UsageError(f"firewall {options.action}: wrong arguments", f"usage: firewall {options.action} {words}")
    if options.action == "test":
        from . import firewall_packet

        return firewall_packet.run(options, PATHS)
    if options.action == "log":
        from . import firewall_log

        return firewall_log.run(options, PATHS)
    return _show(options) if options.action == "show" else _print(options)


def _show(options: Options) -> int:
    """Print the lists of one qube or of all. Return 1 if a list is blocked or unreadable."""
    from ..core.firewall import shown
    from ..core.firewall.condition import BLOCKED

    ground = firewall_ground.look(PATHS)
    wanted = firewall_ground.addresses_of(options.arguments[0], ground.vifs) if options.arguments else ground.vifs
    lists = shown.lists(wanted, ground.facts)
    if options.json:
        print_json(firewall_lists.as_data(lists, ground.vifs, ground.enforcer))
    else:
        show(firewall_lists.as_text(lists, ground.vifs, ground.enforcer), options.color)
        if not lists:
            print("no qube is attached to this provider")
    complain((ground.unseen,) if ground.unseen is not None else ())
    blocked = any(each.condition is not None and each.condition.state == BLOCKED for each in lists)
    return EXIT_FAILED if blocked or ground.unseen is not None else EXIT_DONE


def _print(options: Options) -> int:
    """Print the tables of the lists as nft loads them. Return 1 if a list has an error and thus refuses everything."""
    untrusted_entries, servers = _from_file(options.arguments[0]) if options.arguments else _from_qubesdb()
    stored = entries.by_address(untrusted_entries)
    lists = {address: bind(parse(address, found), {}) for address, found in stored.sets.items() if found}
    text = operations.transaction(plan.plan({}, plan.Wanted(lists, servers)))
    problems = [str(problem) for problem in stored.problems]
    problems += [str(problem) for bound in lists.values() for problem in bound.ruleset.problems]
    blocked = [str(address) for address, bound in lists.items() if bound.refused]
    if options.json:
        lengths = [{"address": str(each), "entries": len(bound.ruleset.rules)} for each, bound in lists.items()]
        data = {"schema": firewall_lists.SCHEMA, "ruleset": text, "lists": lengths}
        print_json({**data, "problems": problems, "blocked": blocked})
    else:
        print(text, end="")
        complain(map(GuestnetError, problems))
    return EXIT_FAILED if blocked else EXIT_DONE


def _from_file(path: str) -> tuple[dict[str, bytes], dict[int, frozenset[IPAddress]]]:
    """Return the entries of a file (`-` is standard input), and no name servers, which a file does not have."""
    from ..lab.store_entries import parse_entries

    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_LONGEST + 1)
    except OSError as error:
        raise FileError(path, error, "name a file with lines `/qubes-firewall/… = value`") from None
    if len(data) > _LONGEST:
        raise ConfigError(f"{name}: more than {_LONGEST >> 20} MiB", "give only the entries below /qubes-firewall/")
    found = parse_entries(data, name)
    return {path.decode("utf-8", "surrogateescape"): value for path, value in found.items()}, {}


def _from_qubesdb() -> tuple[dict[str, bytes], dict[int, frozenset[IPAddress]]]:
    """Return the entries of this provider, and the name servers that it redirects its client qubes to."""
    from ..core.settings import PROVIDER_KEY
    from . import diagnosis

    now = reading.take(firewall_ground.read_entries)
    untrusted_entries = now.entries
    if not untrusted_entries.get(PROVIDER_KEY):
        raise UsageError("this qube is not a provider, so it has no lists of client qubes", "give a file with entries")
    provided = diagnosis.look(now, PATHS)[0].provided
    servers = (each.address for each in provided.names.servers) if provided is not None else ()
    return untrusted_entries, {4: frozenset(each for each in servers if each.version == 4), 6: frozenset()}
