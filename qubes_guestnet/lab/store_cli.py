# SPDX-License-Identifier: GPL-2.0-or-later
"""`qubes-guestnet lab store`: the daemon, and small client verbs with which a person plays dom0 from a shell."""

from __future__ import annotations

import argparse
import os
import select
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError, GuestnetError, UsageError, printable
from ..system.qubesdb import store as qubesdb
from ..system.qubesdb.direct import DirectWatches
from .caller import with_own_command
from .store import Daemon
from .store_entries import escape, parse_entries
from .store_hub import Hub
from .store_serve import entries_of, serve

_EPILOG = """\
examples:
  qubes-guestnet lab store --dir /tmp/q --set /qubes-ip=10.137.0.7 &
  qubes-guestnet lab store --dir /tmp/q write /qubes-gateway 10.138.0.1 /qubes-mac 00:16:3e:5e:6c:00
  qubes-guestnet lab store --dir /tmp/q multiread /qubes-
  qubes-guestnet lab store --dir /tmp/q watch /net-config/
"""


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `store` to the lab's command line. `args.run(args)` gives the exit status or raises GuestnetError.

    Args:
        subparsers: what `add_subparsers()` of the lab's parser returned.
    """
    parser = subparsers.add_parser(
        "store",
        help="serve a QubesDB from memory, or read and write one",
        description="Without a verb: serve DIR/qubesdb.sock and DIR/qubesdb.ro.sock until SIGTERM or SIGINT.",
        epilog=with_own_command(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)


def _add_arguments(parser: argparse.ArgumentParser, hub: type[Hub] = Hub, daemon: type[Daemon] = Daemon) -> None:
    parser.add_argument(
        "--dir",
        default=os.environ.get(qubesdb.DIRECTORY_VARIABLE),
        help=f"folder of the sockets (default: ${qubesdb.DIRECTORY_VARIABLE})",
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="an initial entry")
    parser.add_argument("--file", metavar="ENTRIES", help="initial entries, one `/path = value` per line")
    parser.add_argument(
        "--each-removal",
        action="store_true",
        help="report the removal of a folder as one event per entry, as newer daemons do",
    )
    parser.set_defaults(run=_daemon, hub=hub, daemon=daemon)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs of a client")
    # SUPPRESS: else a sub-parser's default would overwrite what was given before the verb.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    common.add_argument("--timeout", metavar="SECONDS", type=float, default=5.0, help="time limit of an answer")
    raw = argparse.ArgumentParser(add_help=False)
    raw.add_argument("-r", "--raw", action="store_true", help="print values unescaped")

    def verb(name: str, run: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, parents=[common, *parents])
        added.set_defaults(run=run)
        return added

    verb("read", _read, "print values; exit status 1 if one is missing", raw).add_argument("key", nargs="+")
    verb("write", _write, "set entries").add_argument("pair", nargs="+", metavar="KEY VALUE")
    verb("multiread", _multiread, "print the entries that begin with PREFIX", raw).add_argument("prefix", nargs="+")
    verb("list", _list, "print the paths that begin with PREFIX").add_argument("prefix", nargs="+")
    verb("rm", _rm, "remove entries; with a trailing slash all entries below").add_argument("key", nargs="+")
    watch = verb("watch", _watch, "print the path of each change; with a trailing slash of all entries below")
    watch.add_argument("key", nargs="+")
    watch.add_argument("-n", "--count", type=int, help="end after this many events (default: never)")


def _directory(args: argparse.Namespace) -> str:
    if not args.dir:
        raise UsageError("the folder is missing", f"give --dir or set {qubesdb.DIRECTORY_VARIABLE}")
    return str(args.dir)


def _daemon(args: argparse.Namespace) -> int:
    directory = _directory(args)
    entries: dict[bytes, bytes] = {}
    if args.file:
        try:
            entries |= parse_entries(Path(args.file).read_bytes(), args.file)
        except OSError as error:
            raise ConfigError(f"{args.file}: {error.strerror}", "give a file with entries") from error
    entries |= entries_of(args.set)
    return serve(directory, args.hub(entries, each_removal=args.each_removal), len(entries), args.daemon)


def _store(args: argparse.Namespace, *, writable: bool = False) -> qubesdb.Store:
    return qubesdb.connect(writable=writable, directory=_directory(args), timeout=args.timeout)


def _show(args: argparse.Namespace, value: bytes) -> None:
    if args.raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(value + b"\n")
    else:
        print(escape(value))


def _read(args: argparse.Namespace) -> int:
    store = _store(args)
    status = 0
    for key in args.key:
        value = store.read(key)
        if value is None:
            print(f"qubes-guestnet: {printable(key)}: no such entry", file=sys.stderr)
            status = 1
        else:
            _show(args, value)
    store.close()
    return status


def _multiread(args: argparse.Namespace) -> int:
    store = _store(args)
    for prefix in args.prefix:
        for path, value in store.multiread(prefix).items():
            print(f"{path} = ", end="")
            _show(args, value)
    store.close()
    return 0


def _list(args: argparse.Namespace) -> int:
    store = _store(args)
    for prefix in args.prefix:
        for path in store.list(prefix):
            print(path)
    store.close()
    return 0


def _write(args: argparse.Namespace) -> int:
    if len(args.pair) % 2:
        raise UsageError(f"{args.pair[-1]} has no value", "write KEY VALUE [KEY VALUE…]")
    store = _store(args, writable=True)
    for key, value in zip(args.pair[::2], args.pair[1::2], strict=True):
        store.write(key, os.fsencode(value))
    store.close()
    return 0


def _rm(args: argparse.Namespace) -> int:
    store = _store(args, writable=True)
    for key in args.key:
        store.rm(key)
    store.close()
    return 0


def _watch(args: argparse.Namespace) -> int:
    watches = DirectWatches(_directory(args), args.timeout, args.key)
    poll = select.poll()
    poll.register(watches, select.POLLIN)
    seen = 0
    try:
        while args.count is None or seen < args.count:
            for path in watches.events()[: None if args.count is None else args.count - seen]:
                print(path, flush=True)
                seen += 1
            if args.count is None or seen < args.count:
                poll.poll()
    finally:
        watches.close()
    return 0


def main(arguments: list[str] | None = None, *, hub: type[Hub] = Hub, daemon: type[Daemon] = Daemon) -> int:
    """Return the same without the rest of the lab: `python3 -m qubes_guestnet.lab.store_cli`.

    Args:
        arguments: the command line, else that of the process.
        hub, daemon: what to serve with; tests have a pair with faults.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="qubes-guestnet lab store", description=__doc__)
    _add_arguments(parser, hub, daemon)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except UsageError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return 2
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
