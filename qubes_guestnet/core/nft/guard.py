# SPDX-License-Identifier: GPL-2.0-or-later
"""The bits by which the base rules report accepted packets to the agent's guard, so that missing rules accept none.

Other programs can flush or delete any chain of ours, or a single rule, and the kernel notifies the agent some
milliseconds later. The guard's table (system/nft/guard) stays. Before each chain that a packet from or to a qube must
pass, the guard sets the bit HELD of its priority (skb->priority), and after that chain it drops packets that still have
the bit. The rule that clears the bit repeats the conditions of the rules before it: if one of them is missing, alone or
with its chain, the packets that it refused are still refused (behaviour B125). For the chain egress the bit is set
after forward, which every packet of a qube passes.

The guard uses the priority because routing has just set it (ip_forward()), and nothing reads it before the queues of a
device; the guard clears its bits before that. The mark belongs to users, and the type (pkttype) decides whether a
refusal is answered. Without a guard no packet has any of these bits.
"""

from __future__ import annotations

# HELD: no rule has accepted the packet yet. ASKED: custom-forward has seen it. LEFT: custom-forward left it to the next
# rules, which the guard repeats. UNNAMED: dns-reject has not accepted it yet.
HELD, ASKED, LEFT, UNNAMED = 0x40000000, 0x20000000, 0x10000000, 0x08000000
ALL = HELD | ASKED | LEFT | UNNAMED
IS_HELD = f"meta priority & {HELD:#x} != 0"


def asking(word: str, chain: str, toggled_bits: int) -> tuple[str, ...]:
    """Return the rules that ask a users' chain about each packet, once.

    One rule has both the jump and the bit, so that no packet can bypass the users' rules if the jump is deleted.
    Invalid packets, and ICMP errors about connections of others (behaviour B113), stay held.

    Args:
        word: the family, ip or ip6.
        chain: the users' chain.
        toggled_bits: HELD, and the bits that replace it.
    """
    passed = f"{toggled(toggled_bits)} jump {chain}"
    return (
        f"meta priority & {HELD:#x} == 0 jump {chain}",
        f"{IS_HELD} ct state {{ new, established, untracked }} {passed}",
        f"{IS_HELD} ct state related iifgroup != 2 {passed}",
        f"{IS_HELD} ct state related iifname . ct original {word} saddr @allowed {passed}",
        f"{IS_HELD} ct state related iifname . ct reply {word} saddr @allowed {passed}",
    )


def toggled(bits: int) -> str:
    """Return the statement of nft that changes these bits of a priority."""
    return f"meta priority set meta priority ^ {bits:#x}"


def cleared(bits: int) -> str:
    """Return the statement of nft that clears these bits of a priority."""
    return f"meta priority set meta priority & {~bits & 0xFFFFFFFF:#x}"
