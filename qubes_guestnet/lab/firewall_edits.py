# SPDX-License-Identifier: GPL-2.0-or-later
"""What qvm-firewall does with a list of rules: it reads the list from dom0, changes it, and writes it back whole.

Read in core-admin-client (`tools/qvm_firewall.py`, `firewall.py`). Pure.
"""

from __future__ import annotations

from .firewall_rules import FAMILIES, Rule, RuleError, Rules, pairs


def read_by_client(rules: Rules, now: float) -> Rules:
    """Return the list as qvm-firewall has it, to change it and to write it back.

    It has no expired rules, and a destination of length 0 as none: that is lost with the first change of the list.
    """
    return tuple(_of_client(rule) for rule in rules if not rule.expired(now))


def _of_client(rule: Rule) -> Rule:
    kind, value = rule.destination or ("", "")
    unlimited = kind in FAMILIES and int(value.partition("/")[2]) == 0
    return rule._replace(destination=None) if unlimited else rule


def raw(rule: Rule) -> str:
    """Return a rule in the order of `qvm-firewall QUBE list --raw`."""
    found = pairs(_of_client(rule))
    moved = {"specialtarget": found.pop("specialtarget", None), "expire": rule.expire, "comment": rule.comment or None}
    order = sorted(found.items(), key=lambda pair: {"action": 0, "proto": 1}.get(pair[0], 2))
    return " ".join(f"{key}={value}" for key, value in [*order, *moved.items()] if value is not None)


HEAD = ("no", "action", "host", "protocol", "port(s)", "special target", "icmp type", "expire", "comment")


def row(number: int, rule: Rule, now: float) -> tuple[str, ...]:
    """Return a row of the table of `qvm-firewall QUBE list`, below `HEAD`."""
    ports = "-".join(map(str, dict.fromkeys(rule.dstports))) if rule.dstports is not None else None
    expire = f"{rule.expire - now:+.0f}s" if rule.expire is not None else None
    host = rule.destination and rule.destination[1]
    values = (rule.action, host, rule.proto, ports, rule.specialtarget, rule.icmptype, expire, rule.comment or None)
    return str(number), *("-" if value is None else str(value) for value in values)


def added(rules: Rules, rule: Rule, before: int | None = None) -> Rules:
    """Return the list with one more rule: before that number, or at the end, also for a number beyond it.

    Raises:
        RuleError: the number is negative.
    """
    if before is not None and before < 0:
        raise RuleError(f"--before {before} is not valid", "rules are numbered from 0")
    at = len(rules) if before is None else before
    return (*rules[:at], _of_client(rule), *rules[at:])


def without_number(rules: Rules, number: int) -> Rules:
    """Return the list without the rule of that number.

    Raises:
        RuleError: there is none.
    """
    if not 0 <= number < len(rules):
        numbers = f"the numbers are 0 to {len(rules) - 1}" if rules else "the list has no rule"
        raise RuleError(f"--rule-no {number}: no such rule", numbers)
    return rules[:number] + rules[number + 1 :]


def without(rules: Rules, rule: Rule) -> Rules:
    """Return the list without the first rule that equals this one, expire and comment included.

    Raises:
        RuleError: there is none.
    """
    wanted = _of_client(rule)
    if wanted not in rules:
        raise RuleError(f"{raw(wanted)}: no such rule", "give a rule as `list --raw` prints it, or --rule-no")
    return without_number(rules, rules.index(wanted))
