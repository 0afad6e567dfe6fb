# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of the lab's QubesDB, byte by byte, without sockets. Reference: the daemon of Qubes 4.3."""

from __future__ import annotations

import ctypes
import itertools
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.errors import ConfigError
from qubes_guestnet.lab.store_entries import escape, parse_entries, unescape
from qubes_guestnet.lab.store_hub import Client, Hub
from qubes_guestnet.system.qubesdb import wire

READ, WRITE, MULTIREAD, LIST, RM, WATCH, UNWATCH, OK, NOENT, ERROR, R_READ, R_MULTIREAD, R_LIST, R_WATCH = range(14)
ENTRIES = {b"/b": b"2", b"/a/y": b"", b"/a": b"1", b"/a/x": b"3", b"/a-": b"4", b"/aA": b"5"}
LONGEST = b"/" + b"p" * 62


def message(kind: int, path: bytes = b"", data: bytes = b"", length: int | None = None) -> bytes:
    """Spelled out, so that the codec under test has an independent judge."""
    size = len(data) if length is None else length
    return bytes([kind]) + path.ljust(64, b"\0") + b"\0\0\0" + size.to_bytes(4, sys.byteorder) + data


def talk(hub: Hub, client: Client, sent: bytes) -> bytes:
    """Send, and take everything that comes back."""
    client.inbox += sent
    while hub.step(client):
        pass
    answer = b"".join(client.outbox)
    client.sent(len(answer))
    assert client.out_bytes == 0
    return answer


@pytest.fixture
def hub() -> Hub:
    return Hub(ENTRIES)


def test_the_header_is_the_c_struct() -> None:
    class Header(ctypes.Structure):
        _fields_ = [("type", ctypes.c_uint8), ("path", ctypes.c_char * 64), ("data_len", ctypes.c_uint32)]

    assert ctypes.sizeof(Header) == wire.HEADER_SIZE == 72
    assert bytes(Header(R_READ, b"/qubes-ip", 3)) == wire.pack(R_READ, b"/qubes-ip", b"abc")[:72]
    assert wire.unpack(bytes(Header(R_LIST, b"/x", 7))) == (R_LIST, b"/x", 7)
    assert wire.pack(READ, b"/qubes-ip").hex() == "00" + b"/qubes-ip".hex() + "00" * (72 - 10)


def test_garbage_after_the_path_is_ignored() -> None:
    raw = bytearray(message(WRITE, b"/a\0garbage", b"x"))
    raw[65:68] = b"pad"
    assert wire.unpack(raw) == (WRITE, b"/a", 1)
    with pytest.raises(struct.error):
        wire.unpack(raw[:71])


GOLDEN = {
    "READ": (message(READ, b"/a"), message(R_READ, b"/a", b"1")),
    "READ of an empty value": (message(READ, b"/a/y"), message(R_READ, b"/a/y")),
    "READ of nothing": (message(READ, b"/c"), message(NOENT, b"/c")),
    "READ of a folder": (message(READ, b"/a/"), message(NOENT, b"/a/")),
    "READ of the root": (message(READ, b"/"), message(NOENT, b"/")),
    "READ of no path": (message(READ), message(NOENT)),
    "READ with garbage after the path": (message(READ, b"/a\0zz"), message(R_READ, b"/a", b"1")),
    "MULTIREAD by prefix, ordered as strcmp": (
        message(MULTIREAD, b"/a"),
        message(R_MULTIREAD, b"/a", b"1")
        + message(R_MULTIREAD, b"/a-", b"4")
        + message(R_MULTIREAD, b"/a/x", b"3")
        + message(R_MULTIREAD, b"/a/y")
        + message(R_MULTIREAD, b"/aA", b"5")
        + message(R_MULTIREAD),
    ),
    "MULTIREAD of nothing": (message(MULTIREAD, b"/c"), message(R_MULTIREAD)),
    "MULTIREAD of everything goes backwards": (
        message(MULTIREAD),
        b"".join(message(R_MULTIREAD, path, ENTRIES[path]) for path in sorted(ENTRIES, reverse=True))
        + message(R_MULTIREAD),
    ),
    "MULTIREAD with data": (message(MULTIREAD, b"/a", b"data"), message(ERROR, b"/a")),
    "LIST": (
        message(LIST, b"/a/"),
        message(R_LIST, b"/a/x") + message(R_LIST, b"/a/y") + message(R_LIST),
    ),
    "LIST of everything": (
        message(LIST),
        b"".join(message(R_LIST, path) for path in sorted(ENTRIES)) + message(R_LIST),
    ),
    "LIST with data": (message(LIST, b"/a", b"data"), message(ERROR, b"/a")),
    "WRITE": (message(WRITE, b"/n", b"v") + message(READ, b"/n"), message(OK, b"/n") + message(R_READ, b"/n", b"v")),
    "WRITE of nothing": (message(WRITE, b"/a") + message(READ, b"/a"), message(OK, b"/a") + message(R_READ, b"/a")),
    "WRITE of the longest": (message(WRITE, LONGEST, b"v" * 3071), message(OK, LONGEST)),
    "WRITE of too much": (
        message(WRITE, b"/n", b"v" * 3072) + message(READ, b"/n"),
        message(ERROR, b"/n") + message(NOENT, b"/n"),
    ),
    "WRITE of a NUL": (
        message(WRITE, b"/n", b"a\0b") + message(READ, b"/n"),
        message(ERROR, b"/n") + message(NOENT, b"/n"),
    ),
    "RM": (message(RM, b"/a") + message(READ, b"/a"), message(OK, b"/a") + message(NOENT, b"/a")),
    "RM of a folder": (
        message(RM, b"/a/") + message(LIST, b"/a"),
        message(OK, b"/a/") + b"".join(message(R_LIST, path) for path in (b"/a", b"/a-", b"/aA")) + message(R_LIST),
    ),
    "RM of everything": (message(RM, b"/") + message(LIST), message(OK, b"/") + message(R_LIST)),
    "RM of nothing": (message(RM, b"/c"), message(NOENT, b"/c")),
    "RM of a folder without its slash": (message(RM, b"/aA/"), message(NOENT, b"/aA/")),
    "RM of no path": (message(RM), message(NOENT)),
    "RM with data": (
        message(RM, b"/a", b"x") + message(READ, b"/a"),
        message(ERROR, b"/a") + message(R_READ, b"/a", b"1"),
    ),
    "WATCH": (message(WATCH, b"/a/"), message(OK, b"/a/")),
    "WATCH leaves its data in the stream": (
        message(WATCH, b"/a", length=72) + message(READ, b"/b"),
        message(OK, b"/a") + message(R_READ, b"/b", b"2"),
    ),
    "WATCH then WRITE: the reply comes first": (
        message(WATCH, b"/n") + message(WATCH, b"/n") + message(WRITE, b"/n", b""),
        message(OK, b"/n") * 3 + message(R_WATCH, b"/n") * 2,
    ),
    "UNWATCH takes one": (
        message(WATCH, b"/n") * 2 + message(UNWATCH, b"/n") * 3,
        message(OK, b"/n") * 4 + message(NOENT, b"/n"),
    ),
    "WATCH of what is no path never fires": (
        message(WATCH) + message(WATCH, b"n") + message(WRITE, b"/n", b"x"),
        message(OK) + message(OK, b"n") + message(OK, b"/n"),
    ),
    "an unknown type": (message(200, b"/a"), message(ERROR, b"/a")),
    "a reply": (message(OK, b"/a") + message(R_MULTIREAD, b"/a", b"x"), message(ERROR, b"/a") * 2),
    "an unknown type with data": (
        message(14, b"/\n", b"x" * 500) + message(READ, b"/b"),
        message(ERROR, b"/\n") + message(R_READ, b"/b", b"2"),
    ),
    "a bad path": (
        message(READ, b"/a b") + message(READ, b"/b"),
        message(ERROR, b"/a b") + message(R_READ, b"/b", b"2"),
    ),
    "a leading dash": (message(READ, b"-a"), message(ERROR, b"-a")),
    "a path without end": (message(READ, b"/" * 64), message(NOENT, b"/" * 63)),
    "a path without end, of an unknown type": (message(99, b"/" * 64), message(ERROR, b"/" * 64)),
    "a bad path to WRITE": (
        message(WRITE, b"/a\xff", b"abc") + message(READ, b"/b"),
        message(ERROR, b"/a\xff") + message(R_READ, b"/b", b"2"),
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_answers(hub: Hub, case: str) -> None:
    sent, expected = GOLDEN[case]
    client = hub.connect(writable=True)
    assert talk(hub, client, sent) == expected
    assert not client.closing


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (message(READ, b"/a", b"data"), b""),
        (message(WRITE, b"/a/", b"x"), message(ERROR, b"/a/")),
        (message(WRITE, b"/", b"x"), message(ERROR, b"/")),
        (message(WRITE, b"a", b"x"), message(ERROR, b"a")),
        (message(WRITE, b"", b"x"), message(ERROR)),
    ],
)
def test_mistakes_that_cost_the_connection(hub: Hub, sent: bytes, expected: bytes) -> None:
    client = hub.connect(writable=True)
    assert talk(hub, client, sent + message(READ, b"/a")) == expected
    assert client.closing


@pytest.mark.behaviour("B105")
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (message(WRITE, b"/a", b"x" * 3071), message(ERROR, b"/a")),
        (message(WRITE, b"/a/", b"x"), message(ERROR, b"/a/")),
        (message(RM, b"/a"), message(ERROR, b"/a")),
        (message(RM, b"/", b"data"), message(ERROR, b"/")),
    ],
)
def test_the_read_only_socket_refuses_and_stays(hub: Hub, sent: bytes, expected: bytes) -> None:
    client = hub.connect(writable=False)
    assert talk(hub, client, sent + message(READ, b"/a")) == expected + message(R_READ, b"/a", b"1")
    assert not client.closing
    assert talk(hub, client, message(WATCH, b"/a")) == message(OK, b"/a")


@pytest.mark.parametrize(
    ("watched", "removed", "folder_event", "each_event"),
    [
        (b"/a/", b"/a/", [b"/a/"], [b"/a/x", b"/a/y"]),
        (b"/", b"/a/", [b"/a/"], [b"/a/x", b"/a/y"]),
        (b"/a/x", b"/a/", [], [b"/a/x"]),  # a watch of one entry misses the removal of its folder
        (b"/a", b"/a/", [], []),
        (b"/a/x", b"/a/x", [b"/a/x"], [b"/a/x"]),
        (b"/c", b"/c", [], []),
    ],
)
def test_events_of_a_removal(
    watched: bytes, removed: bytes, folder_event: list[bytes], each_event: list[bytes]
) -> None:
    for each, events in ((False, folder_event), (True, each_event)):
        hub = Hub(ENTRIES, each_removal=each)
        watcher, writer = hub.connect(writable=False), hub.connect(writable=True)
        talk(hub, watcher, message(WATCH, watched))
        talk(hub, writer, message(RM, removed))
        assert talk(hub, watcher, b"") == b"".join(message(R_WATCH, path) for path in events)
        assert (watcher in hub.woken) is bool(events)


def test_the_watches_go_with_the_client(hub: Hub) -> None:
    watcher, writer = hub.connect(writable=True), hub.connect(writable=True)
    talk(hub, watcher, message(WATCH, b"/"))
    hub.disconnect(watcher)
    talk(hub, writer, message(WRITE, b"/a", b""))
    assert not watcher.outbox
    assert hub.clients == {writer}


def test_a_huge_claimed_length_is_dropped_without_keeping_it(hub: Hub) -> None:
    client = hub.connect(writable=True)
    size = 10 << 20
    assert talk(hub, client, message(WRITE, b"/a", length=size)) == b""
    for _ in range(size // 65536):
        assert talk(hub, client, b"z" * 65536) == (b"" if client.discard else message(ERROR, b"/a"))
        assert len(client.inbox) == 0
    assert talk(hub, client, message(READ, b"/a")) == message(R_READ, b"/a", b"1")


paths = st.sampled_from([b"/a", b"/a/x", b"/a/", b"/", b"", b"/new", b"/a b", b"rel", b"/" + b"l" * 62])
commands = st.builds(message, st.integers(0, 14), paths, st.binary(max_size=20))
streams = st.lists(commands | st.binary(max_size=150), max_size=12).map(b"".join)


@given(stream=streams, cuts=st.lists(st.integers(0, 2000), max_size=8), writable=st.booleans())
def test_how_the_bytes_are_cut_makes_no_difference(stream: bytes, cuts: list[int], writable: bool) -> None:
    whole_hub, cut_hub = Hub(ENTRIES), Hub(ENTRIES)
    whole, cut = whole_hub.connect(writable=writable), cut_hub.connect(writable=writable)
    expected = talk(whole_hub, whole, stream)
    edges = [0, *sorted(min(edge, len(stream)) for edge in cuts), len(stream)]
    got = b"".join(talk(cut_hub, cut, stream[start:end]) for start, end in itertools.pairwise(edges))
    assert got == expected
    assert cut.closing == whole.closing
    reader = whole_hub.connect(writable=False), cut_hub.connect(writable=False)
    assert talk(whole_hub, reader[0], message(MULTIREAD)) == talk(cut_hub, reader[1], message(MULTIREAD))


operations = st.lists(
    st.tuples(
        st.sampled_from("wr"), st.sampled_from([b"/a", b"/a/b", b"/a/b/c", b"/b", b"/a/", b"/"]), st.binary(max_size=3)
    ),
    max_size=30,
)


@given(operations)
def test_the_database_against_a_dictionary(steps: list[tuple[str, bytes, bytes]]) -> None:
    hub, model = Hub(), {}
    for verb, path, value in steps:
        client = hub.connect(writable=True)
        if verb == "w":
            talk(hub, client, message(WRITE, path, value))
            if not path.endswith(b"/") and b"\0" not in value:
                model[path] = value
        else:
            talk(hub, client, message(RM, path))
            model = {
                key: kept
                for key, kept in model.items()
                if not (key.startswith(path) if path[-1:] == b"/" else key == path)
            }
    reader = hub.connect(writable=False)
    everything = b"".join(message(R_MULTIREAD, key, model[key]) for key in sorted(model)) + message(R_MULTIREAD)
    assert talk(hub, reader, message(MULTIREAD, b"/")) == everything


@given(st.binary(max_size=40).map(lambda value: value.replace(b"\\", b"/")))
def test_values_are_printed_so_that_they_can_be_read_back(value: bytes) -> None:
    """All but a backslash, which the command line tools of QubesDB do not escape either."""
    assert unescape(escape(value).encode()) == value
    assert parse_entries(f"/k = {escape(value)}\n".encode(), "f") == {b"/k": value}


def test_a_file_of_entries() -> None:
    text = b"# comment\n\n/a = 1\n/b=2\n/c = x = \\x0ay\n/d =\n/e = \n"
    assert parse_entries(text, "f") == {b"/a": b"1", b"/b": b"2", b"/c": b"x = \ny", b"/d": b"", b"/e": b""}
    with pytest.raises(ConfigError, match=r"f, line 2: 'nonsense' is not an entry"):
        parse_entries(b"/a = 1\nnonsense\n", "f")


@pytest.mark.parametrize("path", [b"a", b"/a/", b"/", b"", b"/a b", b"/" + b"x" * 63])
def test_entries_to_begin_with_are_checked(path: bytes) -> None:
    with pytest.raises(ConfigError, match="not a QubesDB entry"):
        Hub({path: b""})
