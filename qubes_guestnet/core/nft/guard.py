# SPDX-License-Identifier: GPL-2.0-or-later
"""The bits by which the base rules report accepted packets to the agent's guard, so that missing rules accept none.

Other programs can flush or delete any chain of ours, or a single rule, and the kernel notifies the agent some
milliseconds later. The
guard's table (system/nft/guard) stays. Ahead of each chain that a packet from or to a qube has to pass, the guard sets
the bit HELD of its priority (skb->priority), and behind that chain drops what still has it. The bit is cleared by a
rule that repeats what the rules before it refuse: if any of them is gone, alone or with its chain, what it refused is
still refused (behaviour B125). For the chain egress that is done behind forward: each packet of a qube comes by there.

The priority, because routing has just set it (ip_forward()), nothing looks at it before the queues of a device, and the
guard clears these bits before that. The mark would be users'; the type (pkttype) decides whether a refusal is answered.
Without a guard no packet has any of these bits.
"""

from __future__ import annotations

# HELD: no rule let it pass yet. ASKED: custom-forward was asked. LEFT: and left it to the rules behind, which the guard
# repeats. UNNAMED: dns-reject has not let it pass yet.
HELD, ASKED, LEFT, UNNAMED = 0x40000000, 0x20000000, 0x10000000, 0x08000000
ALL = HELD | ASKED | LEFT | UNNAMED
IS_HELD = f"meta priority & {HELD:#x} != 0"


def asking(word: str, chain: str, toggled_bits: int) -> tuple[str, ...]:
    """Return the rules that ask a users' chain about each packet, once.

    The jump and the bit are of one rule, so that a jump that is lost lets nothing pass by the users' rules. What is
    invalid, or an ICMP error about a connection of others (behaviour B113), stays held.

    Args:
        word: of the family, ip or ip6.
        chain: the users' one.
        toggled_bits: HELD, and what is set in its place.
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
