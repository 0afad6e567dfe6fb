# SPDX-License-Identifier: GPL-2.0-or-later
"""What one pass of a provider leaves for the next."""

from __future__ import annotations

from ipaddress import ip_address

from qubes_guestnet.core.firewall.enforcement import Memory
from qubes_guestnet.core.firewall.pass_memory import FirewallMemory
from qubes_guestnet.core.firewall.plan import Wanted
from qubes_guestnet.core.nft.mark import Mark
from qubes_guestnet.core.provider.pass_memory import PassMemory

A, B = ip_address("10.137.0.4"), ip_address("10.137.0.5")
MARK = Mark(7, 3)
IN_FORCE = Memory(wanted=Wanted({}, {}, frozenset()), began=True)


def test_a_part_is_verified_until_it_is_invalidated() -> None:
    empty = PassMemory()
    both = empty.mark_verified("base rules", MARK).mark_verified("offload", Mark(8, 3))
    assert both.verified == {"base rules": MARK, "offload": Mark(8, 3)}
    assert both.invalidate("offload").verified == {"base rules": MARK}
    assert both.invalidate("another").verified == both.verified
    assert empty == PassMemory(), "values are frozen"


def test_doubt_leaves_what_was_told_and_forgets_what_was_seen() -> None:
    memory = PassMemory(ipv6_missing=True, swept=("reason",)).mark_verified("base rules", MARK)
    assert memory.doubted() == PassMemory(ipv6_missing=True)
    firewall = FirewallMemory(IN_FORCE, listed=(MARK, {}), noticed={A: 1.0})
    doubted = memory._replace(firewall=firewall).doubted().firewall
    assert doubted == FirewallMemory(IN_FORCE._replace(wanted=None), noticed={A: 1.0})


def test_the_firewall_is_settled_while_what_is_loaded_is_known_to_be_wanted() -> None:
    memory = FirewallMemory(IN_FORCE)
    assert memory.settled
    assert not memory.doubted().settled
    assert not FirewallMemory().settled


def test_entries_are_read_again_for_vifs_that_came_and_went() -> None:
    memory = FirewallMemory(IN_FORCE._replace(devices={B: None}))
    assert not memory.is_due({B: None})
    assert memory.is_due({A: None, B: None}), "it came"
    assert memory.with_detached((B,)).is_due({B: None}), "it went, and is back"
    assert not memory.with_found((A,)).is_due({B: None}), "it is to come"
    assert memory.with_found((B,)).is_due({B: None})


def test_each_coming_and_going_counts_once() -> None:
    memory = FirewallMemory().with_detached((A,)).with_detached((B,)).with_found((A, B))
    assert (memory.detached, memory.found) == ({A, B}, {A, B})
    after = memory.advanced(IN_FORCE, {A})
    assert (after.lists, after.detached, after.found) == (IN_FORCE, frozenset(), {B})
