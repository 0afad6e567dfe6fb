# SPDX-License-Identifier: GPL-2.0-or-later
"""What every client of the store promises: one body over the direct client and the binding."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys

import pytest

from qubes_guestnet.errors import StoreError, StoreRefused
from qubes_guestnet.system.qubesdb import store as qubesdb
from qubes_guestnet.system.qubesdb.binding import BindingStore, BindingWatches
from qubes_guestnet.system.qubesdb.direct import READ_ONLY, DirectStore, DirectWatches
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.programs.qubesdb_clients import ENTRIES, LIBRARY, Kind
from tests.support.programs.qubesdb_faulty import Running


def readable(watches: qubesdb.Watches) -> bool:
    return bool(select.select([watches], [], [], 0)[0])


def test_connect_takes_the_client_that_is_there(kind: Kind, daemon: Running) -> None:
    bound = kind.name != "direct"
    assert isinstance(kind.connect(), BindingStore if bound else DirectStore)
    assert isinstance(kind.watches(), BindingWatches if bound else DirectWatches)


def test_a_directory_in_the_environment_means_the_direct_client(
    kind: Kind, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(qubesdb.DIRECTORY_VARIABLE, kind.directory)
    store = qubesdb.connect()
    watches = qubesdb.connect_watches(["/"])
    assert isinstance(store, DirectStore)
    assert isinstance(watches, DirectWatches)
    store.close()
    watches.close()


@pytest.mark.behaviour("B12")
def test_a_missing_entry_is_none_and_an_empty_one_is_empty(kind: Kind, daemon: Running) -> None:
    store = kind.connect()
    assert store.read("/qubes-ip") == b"10.137.0.7"
    assert store.read("/qubes-ip6") == b""
    assert store.read("/qubes-gateway") is None
    assert store.read("/qubes-i") is None
    assert store.read("/") is None


@pytest.mark.parametrize("path", ["/long", "/bytes"])
def test_values_come_back_as_they_are(kind: Kind, daemon: Running, path: str) -> None:
    assert kind.connect().read(path) == ENTRIES[path.encode()]


def test_multiread_goes_by_prefix_and_is_sorted(kind: Kind, daemon: Running) -> None:
    store = kind.connect()
    assert list(store.multiread("/qubes-").items()) == [
        ("/qubes-ip", b"10.137.0.7"),
        ("/qubes-ip6", b""),
        ("/qubes-mac", b"00:16:3e:5e:6c:00"),
    ]
    assert list(store.multiread("/net-config/")) == [
        "/net-config/00:16:3e:5e:6c:01/custom",
        "/net-config/00:16:3e:5e:6c:01/ip",
    ]
    assert store.multiread("/") == {path.decode(): value for path, value in ENTRIES.items()}
    assert store.multiread("/nothing") == {}
    assert list(store.multiread("/qubes-ip")) == ["/qubes-ip", "/qubes-ip6"]


def test_list_goes_by_prefix_and_is_sorted(kind: Kind, daemon: Running) -> None:
    store = kind.connect()
    assert store.list("/qubes-i") == ["/qubes-ip", "/qubes-ip6"]
    assert store.list("/") == sorted(path.decode() for path in ENTRIES)
    assert store.list("/nothing/") == []


def test_a_big_database_in_one_multiread(kind: Kind) -> None:
    entries = {b"/big/%04d" % number: b"%d" % number * 700 for number in range(1000)}
    with kind.serve(entries):
        assert kind.connect().multiread("/big/") == {path.decode(): value for path, value in entries.items()}


def test_write_then_read(kind: Kind, daemon: Running) -> None:
    store = kind.connect(writable=True)
    for value in (b"one", b"", b"\n\xff", b"y" * 3071):
        store.write("/dns/10.137.0.1/host", value)
        assert store.read("/dns/10.137.0.1/host") == value
    assert kind.connect().read("/dns/10.137.0.1/host") == b"y" * 3071


def test_rm_of_an_entry_takes_only_that(kind: Kind, daemon: Running) -> None:
    store = kind.connect(writable=True)
    store.rm("/qubes-ip")
    assert store.list("/qubes-") == ["/qubes-ip6", "/qubes-mac"]


def test_rm_of_a_folder_takes_all_below(kind: Kind, daemon: Running) -> None:
    store = kind.connect(writable=True)
    store.write("/net-config", b"beside")
    store.rm("/net-config/")
    assert store.list("/net") == ["/net-config"]
    store.rm("/")
    assert store.list("/") == []


def test_rm_of_nothing_is_fine(kind: Kind, daemon: Running) -> None:
    store = kind.connect(writable=True)
    for path in ("/none", "/none/", "/qubes-"):
        store.rm(path)
    assert len(store.list("/")) == len(ENTRIES)


@pytest.mark.parametrize("path", ["", "relative", "-dash", "/a b", "/ä", "/a\n", "/a\0b", "/" + "x" * 63, "/'", "/$x"])
def test_a_path_that_would_cost_the_connection_is_refused_before(kind: Kind, daemon: Running, path: str) -> None:
    store = kind.connect(writable=True)
    watches = kind.watches()
    calls = (store.read, store.multiread, store.list, store.rm, lambda p: store.write(p, b""), watches.watch)
    for call in calls:
        with pytest.raises(StoreRefused, match="QubesDB"):
            call(path)
    with pytest.raises(StoreRefused):
        kind.watches("/fine", path)
    assert store.read("/qubes-ip") == b"10.137.0.7"
    assert not watches.drain()


@pytest.mark.parametrize(("path", "value"), [("/a/", b""), ("/", b""), ("/a", b"z" * 3072), ("/a", b"n\0l")])
def test_an_entry_that_cannot_be_is_refused_before(kind: Kind, daemon: Running, path: str, value: bytes) -> None:
    store = kind.connect(writable=True)
    with pytest.raises(StoreRefused):
        store.write(path, value)
    store.write("/" + "x" * 62, b"z" * 3071)
    assert store.read("/" + "x" * 62) == b"z" * 3071


@pytest.mark.behaviour("B105")
def test_a_refused_write_is_told_apart_and_leaves_the_connection(kind: Kind, daemon: Running) -> None:
    """A write without the right is answered ERROR. The library always has the right; there it is taken away."""
    store = kind.connect()
    assert store.read("/qubes-ip") == b"10.137.0.7"  # so the daemon has accepted it
    for client in tuple(daemon.hub.clients):
        client.writable = False
    with pytest.raises(StoreRefused) as refused:
        store.write("/qubes-ip", b"10.0.0.1")
    assert not refused.value.retryable
    with pytest.raises(StoreRefused):
        store.rm("/qubes-ip")
    with pytest.raises(StoreRefused):
        store.rm("/")
    assert store.read("/qubes-ip") == b"10.137.0.7"


@pytest.mark.behaviour("B105")
def test_the_read_only_socket_when_only_reading(kind: Kind, daemon: Running) -> None:
    if kind.name != "direct":
        return  # the library has the read-write socket compiled in
    kind.connect().read("/")
    kind.watches("/").drain()
    assert [client.writable for client in daemon.hub.clients] == [False, False]
    kind.connect(writable=True).read("/")
    assert sorted(client.writable for client in daemon.hub.clients) == [False, False, True]


@pytest.mark.behaviour("B105")
def test_before_4_3_there_is_only_one_socket(kind: Kind, daemon: Running) -> None:
    os.unlink(os.path.join(kind.directory, READ_ONLY))
    assert kind.connect().read("/qubes-ip") == b"10.137.0.7"
    watches = kind.watches("/a")
    kind.connect(writable=True).write("/a", b"")
    assert eventually(watches.drain)


@pytest.mark.parametrize(
    ("watched", "changed", "fires"),
    [
        ("/a", "/a", True),
        ("/a", "/ab", False),
        ("/a", "/a/b", False),
        ("/a/", "/a/b", True),
        ("/a/", "/a/b/c", True),
        ("/a/", "/a", False),
        ("/a/", "/ab", False),
        ("/", "/anything", True),
        ("/qubes-ip", "/qubes-ip", True),
    ],
)
def test_what_a_watch_matches(kind: Kind, daemon: Running, watched: str, changed: str, fires: bool) -> None:
    watches = kind.watches(watched, "/end")
    store = kind.connect(writable=True)
    store.write(changed, b"new")
    store.write("/marker", b"")  # answered only after the events of the write before it went out
    assert watches.drain() is fires
    store.write("/end", b"")
    assert eventually(watches.drain)


@pytest.mark.behaviour("B77")
def test_watches_are_set_on_return_so_nothing_after_that_is_missed(kind: Kind, daemon: Running) -> None:
    """An update after the watches are set and before the first read shows in the read, in the event, or in both."""
    writer = kind.connect(writable=True)
    watches = kind.watches("/qubes-ip", "/net-config/")
    writer.write("/qubes-ip", b"10.137.0.8")
    assert kind.connect().read("/qubes-ip") == b"10.137.0.8"
    assert readable(watches)
    assert watches.drain()
    assert not readable(watches)


def test_an_existing_entry_causes_no_event(kind: Kind, daemon: Running) -> None:
    watches = kind.watches("/qubes-ip", "/qubes-ip6", "/")
    kind.connect().read("/")
    assert not readable(watches)
    assert not watches.drain()


def test_events_are_eaten_all_at_once_and_without_waiting(kind: Kind, daemon: Running) -> None:
    watches = kind.watches("/a/", "/a/1", "/a/1")
    store = kind.connect(writable=True)
    for number in range(100):
        store.write(f"/a/{number}", b"")
    store.write("/a/1", b"same again")
    store.rm("/a/")
    store.read("/")
    assert watches.drain()
    assert not watches.drain()
    assert not readable(watches)


def test_watches_are_counted_and_unwatched_one_by_one(kind: Kind, daemon: Running) -> None:
    watches = kind.watches("/a", "/a")
    store = kind.connect(writable=True)

    def fires() -> bool:
        watches.drain()
        store.write("/a", b"")
        store.read("/")
        return watches.drain()

    assert fires()
    watches.unwatch("/a")
    assert fires()
    watches.unwatch("/a")
    assert not fires()
    watches.unwatch("/a")  # not set: no error
    watches.watch("/a")
    assert fires()


def test_an_event_that_comes_with_the_reply_is_not_lost(kind: Kind, daemon: Running) -> None:
    """poll() does not show it any more, so drain() does."""
    watches = kind.watches("/a")
    store = kind.connect(writable=True)
    store.write("/a", b"")
    store.read("/")
    watches.watch("/b")  # takes the event off the socket
    assert watches.drain()
    store.write("/b", b"")
    store.read("/")
    assert readable(watches)
    assert watches.drain()
    assert not readable(watches)


def test_closing_twice_is_fine_and_using_a_closed_one_is_an_error(kind: Kind, daemon: Running) -> None:
    store, watches = kind.connect(), kind.watches("/a")
    for opened in (store, watches, store, watches):
        opened.close()
    with pytest.raises(StoreError, match="closed"):
        store.read("/qubes-ip")
    with pytest.raises(StoreError, match="closed"):
        watches.watch("/a")
    eventually(lambda: not daemon.hub.clients, what="the daemon sees them go")


def test_no_descriptor_is_left(kind: Kind, daemon: Running) -> None:
    """The daemon's ends are in this process too, and it may be late to open and to close them."""

    def descriptors() -> int:
        last = kind.connect()
        last.read("/")  # it accepts in order, so no earlier connection is still to be accepted
        eventually(lambda: len(daemon.hub.clients) == 1)
        last.read("/")  # it forgets a client and then closes it, before it serves the next
        count = len(os.listdir("/proc/self/fd"))
        last.close()
        return count

    before = descriptors()
    for _ in range(20):
        kind.connect().close()
        kind.watches("/a").close()
        with pytest.raises(StoreRefused):
            kind.watches("bad path")
    assert descriptors() == before


if LIBRARY not in os.environ and importlib.util.find_spec("qubesdb") is not None:

    def test_the_contract_over_the_installed_binding() -> None:
        """In a mount namespace with a /run of its own: the library's socket is compiled in."""
        needs("unshare", "mount")
        tests = [os.path.join(os.path.dirname(__file__), name) for name in (__file__, "test_store_outage.py")]
        script = 'mount -t tmpfs tmpfs /run && mkdir /run/qubes && exec "$@"'
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        result = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command],
            env={**os.environ, LIBRARY: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
