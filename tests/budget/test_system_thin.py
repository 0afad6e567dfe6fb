# SPDX-License-Identifier: GPL-2.0-or-later
"""system/ carries out and reports; it decides nothing. Read from the source, rule by rule, with every exception named.

A decision in an adapter shows in one of these forms, each of which was there once:

- `core`: it calls a function of core that is no parser and no renderer, or knows a type of the roles that it need not.
- `setting`: it branches on a value that the owner or dom0 chose.
- `another way`: it answers an error of one action by another action (systemd-resolved's fallback, reapply or activate).
- `sequence`: it looks, and by what it saw does this or that (the build of a namespace for fake addresses).
- `choice`: it takes the best of several things that it found (the default route that counts).
- `retry`: it says how long to wait for the next attempt (the pauses of a QubesDB outage).
- `branches`: it has more of them than a decoder of one message needs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qubes_guestnet.core.dns.upstream_servers import DnsSettings
from qubes_guestnet.core.nft.limits import Limits
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.settings import Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink.desired import Flags

TREE = Path(__file__).resolve().parents[2]
SYSTEM = TREE / "qubes_guestnet/system"
FILES = sorted(SYSTEM.rglob("*.py"))
MOST_BRANCHES = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """A form of a decision: where, and which."""

    place: str
    form: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.form}: {self.what}"


# Not the outside thing: they tell, or give back what was taken, or make an error.
QUIET = {"log", "close", "abandon", "shown", "_failed", "_first_line", "_absent_or_not", "_only", "_refused"}

# Functions of core that adapters call: they read what came in and write what goes out, and know no aim.
CODECS = {
    "bus_messages.parse",
    "config.check_keys",
    "config.check_lines",
    "config.check_tables",
    "dns.resolved.parse_resolvectl",
    "dns.resolved_servers.bus_answer",
    "dns.resolved_servers.bus_ways",
    "dns.resolved_servers.link_servers",
    "dns.resolved_servers.printed_answer",
    "dns.upstream_servers.parse_settings",
    "firewall.name_messages.parse_answer",
    "firewall.name_messages.render_request",
    "firewall.name_settings.parse",
    "nft.limits.parse",
    "nft.listing_blocks.chosen",
    "owned_state.parse",
    "owned_state.render",
    "plan.meaning",  # what an errno means for an operation: a table
    "provider.fake_address.namespace",  # a name
    "provider.firewall_unit.parse",
    "provider.firewall_unit.render",
    "provider.vif.parse",
    "provider.vif.render",
    "uplink.networkmanager.is_ours",  # a name
    "vif_name.parse_name",
    "backoff.pause",  # the numbers; `retry_pause` has none
}
# Fields of what the owner and dom0 choose. An adapter may carry them, and not branch on them.
SETTINGS = {
    *Settings._fields, *UplinkSettings._fields, *Family._fields, *ProviderSettings._fields, *Flags._fields,
    *DnsSettings._fields, *Limits._fields, "style", "role", "manager",
} - {"errors"}  # fmt: skip

# Place and form → why it is no decision about the qube.
EXCEPTIONS = {
    ("dbus.bus:Bus.call", "sequence"): "the protocol: the owner of a name is asked for where it is not known",
    ("dbus.bus:Bus._send", "another way"): "a full socket is waited for",
    ("dbus.resolved:ByCommand.link", "sequence"): "a cache: resolvectl takes 10 ms",
    ("dbus.resolved:ByCommand.revert", "sequence"): "resolvectl would start a service that does not run",
    ("fake_address:Namespace.observe", "sequence"): "what is in a namespace can be seen only where there is one",
    ("files:facts", "sequence"): "the target of a link is read as well",
    ("files:publish", "another way"): "a bind mount refuses rename (EBUSY): the same file, written in place",
    ("files:_replace", "another way"): "the temporary file is removed",
    ("programs:start", "another way"): "a child that cannot be watched is ended",
    ("programs:spawned", "another way"): "a script without #! runs in sh, as execvp(3) has it",
    ("programs:finish", "sequence"): "the rest of the output is read",
    ("qubesdb.binding:_Handle.call", "another way"): "half an answer is told from a refusal",
    ("qubesdb.direct:_Link.start", "another way"): "a connection that is not there yet is waited for",
    ("qubesdb.direct:_Link._take", "sequence"): "the rest of a message is waited for",
    ("transient_unit:start", "sequence"): "without systemd, as in the lab, there is no unit to start",
    ("netlink.encode:_encode_route", "setting"): "of a route, not of the settings: it is there or not",
    ("conntrack:_connection", "branches"): "a decoder: one branch for each attribute",
    ("netlink.decode:decode_routes", "branches"): "a decoder: one branch for each attribute",
    ("names_client:LookUp.read", "branches"): "each way in which a reply can end",
    ("nft.encode:_change_elements", "branches"): "an encoder: one branch for each kind of part",
    ("programs:_talk", "branches"): "the poll loop of input, output and the end of a program",
    ("programs:start", "branches"): "each thing that is opened is closed when the next one fails",
    ("transient_unit:_supervised", "branches"): "fork: each end of each process",
    ("dir_watch:Folders.watch", "branches"): "each errno of a folder",
    ("netlink.wire:drain", "branches"): "each errno of a socket",
    ("files:_lists", "branches"): "a reader of lists of files",
    ("dbus.resolved:ByBus.link", "branches"): "a decoder of properties",
}
# Modules of the standard library, without their enumerations.
STANDARD = {"plain_signal", "plain_socket"}


class Module:
    """One module of system/.

    Args:
        name: below system/, such as `dbus.resolved`.
        source: of it.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name, self.tree = name, ast.parse(source)
        self.own = {node.name for node in ast.walk(self.tree) if isinstance(node, Function)}
        self.adapters, self.core = set[str](), dict[str, str]()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                self._import(node)

    def _import(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        for alias in node.names:
            local = alias.asname or alias.name
            if module.startswith("core") and node.level:
                self.core[local] = f"{module.removeprefix('core').lstrip('.')}.{alias.name}".lstrip(".")
            elif node.level and module != "errors" and alias.name not in STANDARD:
                self.adapters.add(local)

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Each function with its class's name before it."""
        for node in ast.iter_child_nodes(self.tree):
            if isinstance(node, Function):
                yield node.name, node
            elif isinstance(node, ast.ClassDef):
                for child in node.body:
                    if isinstance(child, Function):
                        yield f"{node.name}.{child.name}", child

    def acts(self, call: ast.Call) -> str:
        """The name of a function of system/ that is called, "" for any other; an error or a value is made."""
        function = call.func
        if isinstance(function, ast.Name):
            name = function.id
            known = name in self.own or name in self.adapters
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            name = function.attr
            known = function.value.id in self.adapters or (function.value.id == "self" and name in self.own)
        else:
            return ""
        return name if known and not name.strip("_")[:1].isupper() and name not in QUIET else ""


def calls(module: Module, nodes: Iterable[ast.AST]) -> list[str]:
    """What acts among these nodes; an error that is raised is made by what it needs."""
    acting: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Raise):
            continue
        if isinstance(node, ast.Call) and module.acts(node):
            acting.append(module.acts(node))
        acting += calls(module, ast.iter_child_nodes(node))
    return acting


def another_way(module: Module, function: Function) -> Iterator[str]:
    """Actions within a handler of an error."""
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler):
            yield from calls(module, node.body)


def sequence(module: Module, function: Function) -> Iterator[str]:
    """Actions that depend on what an action before them has seen."""
    seen = {
        name.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and calls(module, [node.value])
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp):
            names = {each.id for each in ast.walk(node.test) if isinstance(each, ast.Name)}
            ways = [*node.body, *node.orelse] if isinstance(node, ast.If) else [node.body, node.orelse]
            if calls(module, [node.test]) or names & seen:
                yield from calls(module, ways)


def choice(_module: Module, function: Function) -> Iterator[str]:
    """The best of many: min and max of one argument, and anything that ranks by a key; of two numbers it is a bound."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        if any(word.arg == "key" for word in node.keywords):
            yield "key="
        elif isinstance(node.func, ast.Name) and node.func.id in ("min", "max") and len(node.args) == 1:
            yield node.func.id


def setting(_module: Module, function: Function) -> Iterator[str]:
    """A test of a value that was chosen for the qube."""
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Match):
            test = node.subject if isinstance(node, ast.Match) else node.test
            yield from (x.attr for x in ast.walk(test) if isinstance(x, ast.Attribute) and x.attr in SETTINGS)


def core(module: Module, function: Function) -> Iterator[str]:
    """A function of core; a constructor makes a value, and a table is looked at."""
    for node in ast.walk(function):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name):
            name = module.core.get(called.id, "")
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            inside = module.core.get(called.value.id, "")
            name = f"{inside}.{called.attr}" if inside else ""
        else:
            continue
        last = name.rpartition(".")[2]
        if last[:1].islower() and last not in ("get", "items"):
            yield name


def retry(module: Module, function: Function) -> Iterator[str]:
    """Tenacity anywhere but in its adapter, or a pause as a number there."""
    texts = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    if module.name == "retry_pause":
        yield from (str(each) for each in texts if isinstance(each, float))
    elif "tenacity" in names or any(str(each).startswith("tenacity") for each in texts if isinstance(each, str)):
        yield "tenacity"


def branches(_module: Module, function: Function) -> Iterator[str]:
    """Too many ways through a function."""
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)
    number = 1 + sum(isinstance(node, kinds) for node in ast.walk(function))
    number += sum(len(node.values) - 1 for node in ast.walk(function) if isinstance(node, ast.BoolOp))
    if number > MOST_BRANCHES:
        yield str(number)


FORMS = {
    "core": core, "setting": setting, "another way": another_way, "sequence": sequence, "choice": choice,
    "retry": retry, "branches": branches,
}  # fmt: skip


def found(module: Module) -> Iterator[Found]:
    """Every form of a decision in a module, exceptions included."""
    for name, function in module.functions():
        for form, look in FORMS.items():
            for what in dict.fromkeys(look(module, function)):
                yield Found(f"{module.name}:{name}", form, what)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SYSTEM).with_suffix("").parts)


ALL = [each for file in FILES for each in found(Module(name_of(file), file.read_text(encoding="utf-8")))]


def test_no_adapter_decides() -> None:
    excepted = [each for each in ALL if (each.place, each.form) in EXCEPTIONS or each.what in CODECS]
    bad = [str(each) for each in ALL if each not in excepted]
    assert not bad, "\n" + "\n".join(bad)


def test_every_exception_is_needed() -> None:
    assert sorted(EXCEPTIONS.keys() - {(each.place, each.form) for each in ALL}) == []


def test_every_parser_is_called() -> None:
    """An entry that no adapter calls would let a decision of that name in."""
    assert sorted(CODECS - {each.what for each in ALL if each.form == "core"}) == []


# Decisions that were in adapters, as they were there or as they would be written, and the form that finds each.
PLANTED = {
    "resolved's fallback": (
        """
from . import programs
def servers(bus, interface):
    try:
        return bus.call("GetLink", interface)
    except BusError:
        return _by_command(interface)
def _by_command(interface):
    return programs.run(("resolvectl", "dns", interface), 1.0).output
""",
        "another way",
    ),
    "the build of a fake address": (
        """
def build(name):
    if not _is_namespace(name):
        _ip(f"netns add {name}")
    moved, joined = _exists(name), _exists("provider")
    if joined and not moved:
        _ip("link delete provider")
def _exists(name): ...
def _is_namespace(name): ...
def _ip(*commands): ...
""",
        "sequence",
    ),
    "reapply or activate": (
        """
from . import programs
def reapply(interface, uuid):
    try:
        _nmcli("--wait", "0", "device", "reapply", interface)
    except programs.ProgramError:
        activate(interface, uuid)
def activate(interface, uuid): ...
def _nmcli(*words): ...
""",
        "another way",
    ),
    "the pauses of an outage": (
        """
def backoff(attempt):
    from .. import deferred_imports
    wait = deferred_imports.submodule("tenacity.wait").wait_exponential
    return float(wait(multiplier=0.1, max=5)(attempt))
""",
        "retry",
    ),
    "coexisting services": (
        """
def _leading():
    found = [(metric, name) for name, metric in _routes()]
    return min(found)[1] if found else ""
def _routes(): ...
""",
        "choice",
    ),
    "which of them counts": ("def best(routes):\n    return sorted(routes, key=len)[0]\n", "choice"),
    "a role": ("def write(settings):\n    if settings.active:\n        _put()\ndef _put(): ...\n", "setting"),
    "a style": ("def add(choice):\n    return 1 if choice.style == 'device' else 2\n", "setting"),
    "a function of core that decides": (
        "from ..core.uplink.desired import choose_style\ndef apply(flags):\n    return choose_style(flags, None, '')\n",
        "core",
    ),
    "a module of core that plans": (
        "from ..core.dns import redirection\ndef apply(facts):\n    return redirection.plan(facts)\n",
        "core",
    ),
    "many cases": (
        "def apply(x):\n" + "".join(f"    if x == {n}:\n        return {n}\n" for n in range(9)),
        "branches",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_decision_is_found(planted: str) -> None:
    source, form = PLANTED[planted]
    assert form in {each.form for each in found(Module("planted", source))}


def test_what_only_carries_out_is_let_through() -> None:
    source = """
from . import files, programs
from ..errors import FileError
def apply(name, text):
    program = programs.find("nmcli")
    if not program:
        raise FileError(name)
    try:
        files.publish(name, text)
    except OSError as error:
        raise FileError(name, error) from None
    done = programs.run((program, "load", name), min(1.0, 2.0))
    if done.status:
        raise FileError(name, done.output)
    return done.output
"""
    assert list(found(Module("thin", source))) == []
