# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables without a kernel: takes the texts that we hand to nft, and refuses what the kernel refuses.

A text is one transaction: all of it, or nothing. `tests/netns/test_ruleset_model.py` holds this model to the real one.
Known are the commands that our texts have, and no others. What a rule says is not looked into, but for the chains that
it leads to and the sets that it names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from qubes_guestnet.system.nft.program import Refused

Key = tuple[str, str]  # family and name of a table
_NAMING = ("jump", "goto")


class Chain:
    """Hook in words ("" for none), policy, and rules."""

    def __init__(self, hook: str = "", policy: str = "accept") -> None:
        self.hook, self.policy = hook, policy
        self.rules: list[str] = []


class Set:
    """A set or a map: how it was declared, and its elements; those of a map lead to what they are mapped to."""

    def __init__(self, declared: str, *, is_map: bool = False) -> None:
        self.declared, self.is_map = declared, is_map
        self.elements: dict[str, str] = {}


class Table:
    """Flags, and what is in it by name."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}


class Ruleset:
    """All tables.

    Attributes:
        tables: by family and name.
        generation: another number after each transaction, of any program.
        families: that the kernel has.
        loads: transactions that were not refused.
    """

    def __init__(self, families: Iterable[str] = ("ip", "ip6", "arp", "inet")) -> None:
        self.tables: dict[Key, Table] = {}
        self.families = frozenset(families)
        self.generation = 1
        self.loads: list[str] = []

    def load(self, text: str) -> None:
        """Load one transaction. Raises Refused; nothing of it is in force then."""
        before = copy.deepcopy(self.tables)
        try:
            for line in _statements(text):
                self._do(line)
        except Refused:
            self.tables = before
            raise
        self.generation += 1
        self.loads.append(text)

    def flush(self) -> None:
        """Another program runs `nft flush ruleset`."""
        self.tables.clear()
        self.generation += 1

    # --- looking -------------------------------------------------------------------------------------------------

    def elements(self, family: str, table: str, name: str) -> frozenset[str]:
        """What a set holds; nothing where it is not there."""
        found = self.tables.get((family, table), Table()).sets.get(name)
        return frozenset(found.elements) if found is not None else frozenset()

    def rules(self, family: str, table: str, chain: str) -> tuple[str, ...] | None:
        """The rules of a chain; None where it is not there."""
        found = self.tables.get((family, table), Table()).chains.get(chain)
        return tuple(found.rules) if found is not None else None

    def listing(self, family: str, table: str) -> str:
        """As `nft -s list table` prints it; "" where it is not there."""
        found = self.tables.get((family, table))
        if found is None:
            return ""
        blocks = []
        for name, each in found.sets.items():
            lines = [f"\t\t{line.strip()}" for line in each.declared.split(";") if line.strip()]
            members = ", ".join(f"{key}{value}" for key, value in each.elements.items())
            lines += [f"\t\telements = {{ {members} }}"] * bool(members)
            blocks.append(f"\t{'map' if each.is_map else 'set'} {name} {{\n" + "\n".join(lines) + "\n\t}\n")
        for name, chain in found.chains.items():
            lines = [f"\t\t{chain.hook}; policy {chain.policy};"] * bool(chain.hook)
            lines += [f"\t\t{rule}" for rule in chain.rules]
            blocks.append(f"\tchain {name} {{\n" + "".join(f"{line}\n" for line in lines) + "\t}\n")
        return f"table {family} {table} {{\n" + "\n".join(blocks) + "}\n"

    # --- one command ---------------------------------------------------------------------------------------------

    def _do(self, line: str) -> None:
        verb, kind, *rest = line.split(maxsplit=3)
        if verb == "table":  # of a block, which adds it
            verb, kind, rest = "add", "table", [kind, *rest]
        words = " ".join(rest).split(maxsplit=2)
        family, table, tail = words[0], words[1], words[2] if len(words) > 2 else ""
        if family not in self.families:
            raise Refused(f"nft: {family}: the kernel has no such family")
        if kind == "table":
            self._table(verb, (family, table))
            return
        found = self.tables.get((family, table))
        if found is None:
            raise Refused(f"nft: No such file or directory: table {family} {table}")
        getattr(self, f"_{verb}_{kind}")(found, *_named(tail))

    def _table(self, verb: str, key: Key) -> None:
        if verb == "add":
            self.tables.setdefault(key, Table())
        elif key not in self.tables:
            raise Refused(f"nft: No such file or directory: table {key}")
        elif verb == "delete":
            del self.tables[key]
        else:
            for chain in self.tables[key].chains.values():
                chain.rules.clear()

    def _add_chain(self, table: Table, name: str, tail: str) -> None:
        words = [word.strip() for word in tail.strip("{} ").split(";")]
        hook = next((word for word in words if word.startswith("type ")), "")
        policy = next((word.removeprefix("policy ") for word in words if word.startswith("policy ")), "accept")
        there = table.chains.get(name)
        if there is None:
            table.chains[name] = Chain(hook, policy)
        elif hook and hook != there.hook:
            raise Refused(f"nft: File exists: chain {name}")
        elif hook:
            there.policy = policy

    def _flush_chain(self, table: Table, name: str, _tail: str) -> None:
        self._chain(table, name).rules.clear()

    def _delete_chain(self, table: Table, name: str, _tail: str) -> None:
        self._chain(table, name)
        if name in self._led_to(table):
            raise Refused(f"nft: Device or resource busy: chain {name}")
        del table.chains[name]

    def _add_rule(self, table: Table, name: str, rule: str) -> None:
        chain = self._chain(table, name)
        for place, word in enumerate(words := rule.replace("{", " ").split()):
            if word in _NAMING:
                self._chain(table, words[place + 1])
            elif word.startswith("@") and "," not in word and word[1:] not in table.sets:  # @th,33,1 is raw payload
                raise Refused(f"nft: No such file or directory: set {word}")
        chain.rules.append(rule)

    def _add_set(self, table: Table, name: str, tail: str, *, is_map: bool = False) -> None:
        declared = tail.strip().removeprefix("{").removesuffix("}").strip()
        there = table.sets.setdefault(name, Set(declared, is_map=is_map))
        if there.is_map != is_map or _kind(there.declared) != _kind(declared):
            raise Refused(f"nft: File exists: set {name}")

    def _add_map(self, table: Table, name: str, tail: str) -> None:
        self._add_set(table, name, tail, is_map=True)

    def _flush_set(self, table: Table, name: str, _tail: str) -> None:
        self._set(table, name).elements.clear()

    def _delete_set(self, table: Table, name: str, _tail: str) -> None:
        self._set(table, name)
        if any(f"@{name}" in rule.split() for chain in table.chains.values() for rule in chain.rules):
            raise Refused(f"nft: Device or resource busy: set {name}")
        del table.sets[name]

    def _add_element(self, table: Table, name: str, tail: str) -> None:
        found = self._set(table, name)
        for key, value in _members(tail):
            if key in found.elements and found.elements[key].split()[-1:] != value.split()[-1:]:
                raise Refused(f"nft: File exists: element {key} of {name}")
            for place, word in enumerate(words := value.split()):
                if word in _NAMING:
                    self._chain(table, words[place + 1])
            found.elements.setdefault(key, value)

    def _delete_element(self, table: Table, name: str, tail: str) -> None:
        found = self._set(table, name)
        for key, _ in _members(tail):
            if found.elements.pop(key, None) is None:
                raise Refused(f"nft: No such file or directory: element {key} of {name}")

    @staticmethod
    def _chain(table: Table, name: str) -> Chain:
        if name not in table.chains:
            raise Refused(f"nft: No such file or directory: chain {name}")
        return table.chains[name]

    @staticmethod
    def _set(table: Table, name: str) -> Set:
        if name not in table.sets:
            raise Refused(f"nft: No such file or directory: set {name}")
        return table.sets[name]

    @staticmethod
    def _led_to(table: Table) -> set[str]:
        """Chains that rules or elements of the table lead to."""
        texts = [rule for chain in table.chains.values() for rule in chain.rules]
        texts += [value for each in table.sets.values() for value in each.elements.values()]
        words = [text.split() for text in texts]
        return {each[place + 1] for each in words for place, word in enumerate(each) if word in _NAMING}


def _statements(text: str) -> Iterator[str]:
    """Commands, one a line; what stands in the block of a table is added to it."""
    table = ""
    for line in map(str.strip, text.splitlines()):
        if table and line == "}":
            table = ""
        elif table:
            kind, name, *tail = line.split(maxsplit=2)
            yield f"add {kind} {table} {name} {' '.join(tail)}"
        elif line.startswith("table ") and line.endswith("{"):
            table = " ".join(line.split()[1:3])
            yield f"add table {table}"
        elif line:
            yield line


def _named(tail: str) -> tuple[str, str]:
    name, _, rest = tail.partition(" ")
    return name, rest.strip()


def _kind(declared: str) -> str:
    """What two declarations of one set have to agree in."""
    return declared.split(";")[0].strip()


def _members(tail: str) -> Iterator[tuple[str, str]]:
    """Key, and what else is said of an element: its comment, and where it leads to."""
    parts = tail.strip().removeprefix("{").removesuffix("}").split('"')
    whole = '"'.join(part.replace(",", "\0") if number % 2 else part for number, part in enumerate(parts))
    for member in whole.split(","):
        words, quoted = member.replace("\0", ",").strip(), ""
        if ' comment "' in words:
            words, _, quoted = words.partition(' comment "')
            quoted = f' comment "{quoted}'
        key, colon, value = words.partition(" : ")
        yield key.strip(), f"{quoted}{colon}{value}".rstrip()
