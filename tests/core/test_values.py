# SPDX-License-Identifier: GPL-2.0-or-later
"""Values: an invalid one cannot be made, and none can be changed."""

from __future__ import annotations

import ipaddress
import typing

import pytest

from qubes_guestnet.core import namedtuple, values
from qubes_guestnet.core.values import BACKEND_MAC, DEFAULT, Link, Neighbour, Owned, Route, State

V4, V6 = ipaddress.ip_address("10.138.0.1"), ipaddress.ip_address("fe80::1")


@pytest.mark.parametrize(("index", "name"), [(0, "eth0"), (-1, "eth0"), (2, "")])
def test_no_link_without_index_and_name(index: int, name: str) -> None:
    with pytest.raises(ValueError, match="no interface has index"):
        Link(index, name, "00:16:3e:5e:6c:00")


@pytest.mark.parametrize(("destination", "gateway"), [(DEFAULT[4], V6), (DEFAULT[6], V4)])
def test_no_route_by_the_other_family(destination: values.IPNetwork, gateway: values.IPAddress) -> None:
    with pytest.raises(ValueError, match="cannot be the gateway to"):
        Route(destination, gateway)


def test_nothing_is_onlink_without_a_gateway() -> None:
    with pytest.raises(ValueError, match="onlink requires a gateway"):
        Route(DEFAULT[4], onlink=True)


def test_defaults() -> None:
    assert Route(DEFAULT[4]) == (DEFAULT[4], None, False, 0, values.ROUTE_PROTOCOL)
    assert Neighbour(V4) == (V4, BACKEND_MAC, True)
    assert State() == (False, 0, frozenset(), frozenset(), frozenset(), 0, frozenset())
    assert Owned() == (frozenset(), frozenset())
    assert Link(2, "eth0", "00:16:3e:5e:6c:00")[3:] == (False, False, 0, "", 0)


@pytest.mark.parametrize("value", [Link(2, "eth0", ""), Route(DEFAULT[4]), Neighbour(V4)], ids=repr)
def test_frozen(value: tuple[object, ...]) -> None:
    for name in (value._fields[0], "something"):  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
    assert value in {value}


class _Ours(namedtuple.NamedTuple):
    """A doc string."""

    first: int
    second: str = "b"

    @property
    def both(self) -> str:
        return f"{self.first}{self.second}"


class _Theirs(typing.NamedTuple):
    """A doc string."""

    first: int
    second: str = "b"

    @property
    def both(self) -> str:
        return f"{self.first}{self.second}"


def test_our_named_tuple_is_as_the_library_makes_it() -> None:
    ours, theirs = _Ours(1), _Theirs(1)
    assert tuple(ours) == tuple(theirs) == (1, "b")
    assert ours.both == theirs.both == "1b"
    assert repr(ours) == repr(theirs).replace("_Theirs", "_Ours")
    assert tuple(ours._replace(first=2)) == tuple(theirs._replace(first=2))
    for name in ("_fields", "_field_defaults", "__doc__", "__module__", "__match_args__"):
        assert getattr(_Ours, name) == getattr(_Theirs, name), name
    assert set(_Ours.__annotations__) == set(_Theirs.__annotations__)
    with pytest.raises(TypeError):
        _Ours()  # type: ignore[call-arg]
