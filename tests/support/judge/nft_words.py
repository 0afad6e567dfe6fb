# SPDX-License-Identifier: GPL-2.0-or-later
"""Listings as nft 1.0.6 prints them, for tests of what is read from them."""

from __future__ import annotations


def table(name: str, *chains: str) -> str:
    """`nft list chains` of one table."""
    return f"table {name} {{\n" + "".join(chains) + "}\n"


def chain(name: str, head: str = "", *rules: str) -> str:
    lines = ([head] if head else []) + list(rules)
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def hooked(hook: str, priority: str = "filter", policy: str = "accept", kind: str = "filter") -> str:
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


def ingress(priority: str, devices: str = 'device "eth0"') -> str:
    return f"type filter hook ingress {devices} priority {priority}; policy accept;"


def shown(*rules: str, policy: str = "accept", head: str = "") -> str:
    """`nft -s list chain`."""
    return table("inet filter", chain("FORWARD", head or hooked("forward", policy=policy), *rules)).strip()
