# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read from a listing as nft prints it."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.firewall import listing
from qubes_guestnet.core.firewall.listing import Element, Listed
from tests.core.firewall.made import A

REAL = """\
table ip qubes-firewall {
	flags dormant

	set n-3com.example.org {
		type ipv4_addr
		elements = { 1.2.3.4, 1.2.3.5,
			1.2.3.8 }
	}

	set foreign {
		type ipv4_addr
	}

	map qubes {
		type ipv4_addr : verdict
		elements = { 10.137.0.5 comment "a-b" : jump qbs-10-137-0-5, 10.137.0.6 comment "a-b" : jump qbs-10-137-0-6,
			10.137.0.7 : jump qbs-10-137-0-7,
			10.137.0.8 : accept, 10.9.0.0/16 : accept }
	}

	map theirs {
		type ipv4_addr : verdict
		elements = { 10.1.1.1 : goto qbs-10-137-0-9 }
	}

	chain qubes-forward {
		ip saddr vmap { 1.2.3.4 : jump qbs-10-137-0-8, 1.2.3.5 : accept }
		ip saddr vmap @qubes comment "qubes-guestnet"
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
		counter comment "qubes-guestnet"
	}
}
"""


def test_a_listing_as_nft_prints_it() -> None:
    found = listing.parse(REAL)
    assert found.qubes == {
        A("10.137.0.5"): Element("jump qbs-10-137-0-5", "a-b"),
        A("10.137.0.6"): Element("jump qbs-10-137-0-6", "a-b"),
        A("10.137.0.7"): Element("jump qbs-10-137-0-7", ""),
        A("10.137.0.8"): Element("accept", ""),
    }
    assert found.names == {"3com.example.org": frozenset(map(A, ("1.2.3.4", "1.2.3.5", "1.2.3.8")))}
    assert found.comments("qubes-forward") == ("", "qubes-guestnet")
    assert found.targets == {"qbs-10-137-0-8", "qbs-10-137-0-9"}
    assert (found.dns, found.is_whole) == (None, False)
    assert listing.parse("") == Listed()
    with pytest.raises(ValueError, match="incomplete"):
        listing.parse(REAL.removesuffix("}\n"))


COUNTED = """\
table ip qubes-firewall {
\tchain qubes-forward {
\t\tip saddr vmap @qubes comment "qubes-guestnet"
\t}

\tchain qbs-10-137-0-5 {
\t\ttcp dport 443 counter packets 12 bytes 720 accept comment "0003"
\t\taccept
\t\tcounter packets 0 bytes 0 reject with icmp admin-prohibited comment "policy"
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t\tcounter packets 7 bytes 420 comment "qubes-guestnet"
\t}
}
"""


def test_packets_that_each_rule_of_a_qube_has_judged() -> None:
    assert listing.packets(COUNTED) == {"qbs-10-137-0-5": {"0003": 12, "policy": 0}}
    assert listing.packets("") == {}
