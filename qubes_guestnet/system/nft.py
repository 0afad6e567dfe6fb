# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables: load a transaction, list chains, notice a change. It decides nothing.

Loading and listing are the program's, because its text is what people read and write. That nothing has changed since is
asked far more often, and that is one message to the kernel.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from ..core import listings
from ..errors import KernelError
from . import netlink_wire as wire
from . import programs

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from ..core.shadows import Chain

    _Gathered = TypeVar("_Gathered")

# linux/netfilter/nfnetlink.h, nf_tables.h
NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES = 10, 7
NFT_MSG_GETTABLE, NFTA_TABLE_NAME = 1, 1
NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 4, 1, 3
NFT_MSG_GETGEN, NFTA_GEN_ID = 16, 1
NFT_MSG_GETRULE, NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE = 7, 1, 2, 3
_FAMILY_WORDS = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # linux/netfilter.h
_NUMBERS = {word: number for number, word in _FAMILY_WORDS.items()}
_FAMILY_PLACE = 16  # of struct nfgenmsg in a message

# Names that users' scripts rely on (design, the provider).
TABLE, FAMILIES = "qubes", ("ip", "ip6")
SETS = {"ip": ("allowed", "downstream"), "ip6": ("allowed", "downstream"), "arp": ("allowed",)}
FIREWALL = "qubes-firewall"
LIMITS_TABLE, LIMITS_MAP = "qubes-limits", "qubes"

_SECONDS = 10.0  # 250 qubes with 20 rules each take 0.3 s; a busy machine more
_LONGEST = 1 << 22  # a set of thousands of addresses
_TRIES = 4
_GONE, _NOT_PERMITTED = "No such file or directory", "Operation not permitted"


class NftError(programs.ProgramError):
    """nft is missing, too slow, or refuses a transaction, of which nothing is in force then.

    Trying again can help: another one may have changed the rules in that moment.
    """


class Refused(NftError):
    """nft ran, and it or the kernel took nothing of the transaction."""


class _NotPermitted(NftError):
    needs_root = True


def run(text: str) -> None:
    """Load one transaction: all of it, or nothing.

    Args:
        text: in nft's own language, made of checked values only.

    Raises:
        NftError: it was not loaded.
    """
    end(Waiting().begin(text))


class Waiting:
    """nft, started while it is not known yet what it is to load: starting is two of the three milliseconds it takes.

    To be used in `with`. One that was given nothing by its end is ended, and has loaded nothing.
    """

    def __init__(self) -> None:
        self._started: programs.Started | None = None
        self._problem: NftError | None = None
        try:
            self._started = programs.start((_program(), "-f", "-"), waits=True)
        except programs.ProgramError as error:
            self._problem = NftError(error.problem, error.remedy)

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._started is not None:
            programs.abandon(self._started)

    def begin(self, text: str) -> programs.Started:
        """Start to load the one transaction of this process; to be handed to `end`. See `run`.

        Raises:
            NftError: it could not be started, which was not told so far; or it was given one before.
        """
        started, self._started = self._started, None
        if started is None:
            raise self._problem or NftError("nft: a process loads one transaction")
        return programs.feed(started, text.encode())


def end(started: programs.Started) -> None:
    """Wait until a transaction is loaded.

    Raises:
        Refused: it is not.
        NftError: nft was too slow; whether it is loaded is not known.
    """
    try:
        done = programs.finish(started, _SECONDS)
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None
    if done.status:
        raise Refused(f"nft: {_first_line(done.output)}")


def listing(chains: Iterable[tuple[str, str]]) -> str:
    """What chains of ours hold, without counters; "" when one of them, or its table, is not there.

    Args:
        chains: family and name of each.

    Raises:
        NftError: nft does not run.
    """
    return _listed("chain", tuple(chains))


def sets(families: Iterable[str]) -> str:
    """What our sets hold, as `listing`.

    Args:
        families: that the kernel has.

    Raises:
        NftError: nft does not run.
    """
    return _listed("set", tuple((family, name) for family in families for name in SETS[family]))


def limits(*, counted: bool = False) -> str:
    """What is in the tables of the limits, of both families.

    Args:
        counted: with all elements and counters, of which there can be thousands; else the maps alone.

    Raises:
        NftError: nft does not run.
    """
    words = ("list", "table") if counted else ("-s", "list", "map")
    ends = (LIMITS_TABLE,) if counted else (LIMITS_TABLE, LIMITS_MAP)
    program = _program()
    return "\n".join(_outputs([(program, *words, family, *ends) for family in FAMILIES]))


def named_set(family: str, table: str, name: str) -> str:
    """What any set holds; "" when it, or its table, is not there.

    Raises:
        NftError: nft does not run.
    """
    try:
        done = programs.run((_program(), "-s", "list", "set", family, table, name), _SECONDS)
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None
    if done.status and _GONE not in done.output:
        raise _failed(done.output)
    return "" if done.status else done.output


def table(family: str) -> str:
    """What our table of this family holds, without counters; "" when it is not there.

    Raises:
        NftError: nft does not run.
    """
    return tables((family,))[family]


def generation() -> int:
    """A number that is another one after each transaction of any program. Cheaper than a listing by three milliseconds.

    Raises:
        KernelError: the kernel has no nftables, or we may not ask.
    """
    try:
        asking = wire.Netfilter(NFNL_SUBSYS_NFTABLES)
        try:
            for answer in asking.request(NFT_MSG_GETGEN, 0):
                for kind, begin, _ in wire.attributes(answer, asking.HEADER_BYTES, len(answer)):
                    if kind == NFTA_GEN_ID:
                        return int(struct.unpack_from("!I", answer, begin)[0])
            raise OSError(errno.EPROTO, "no generation")
        finally:
            asking.close()
    except OSError as error:
        raise KernelError("nft generation", error.errno or errno.EIO) from None


def present() -> bool:
    """Whether our tables of both families are there; two messages to the kernel and no program.

    Raises:
        KernelError: the kernel has no nftables, or we may not ask.
    """
    return _have(NFT_MSG_GETTABLE, _text(NFTA_TABLE_NAME, TABLE))


def filtering() -> bool:
    """Whether the firewall of the qubes has its chain in both families, as `present`.

    Raises:
        KernelError: the kernel has no nftables, or we may not ask.
    """
    return _have(NFT_MSG_GETCHAIN, _text(NFTA_CHAIN_TABLE, FIREWALL) + _text(NFTA_CHAIN_NAME, "forward"))


def _have(kind: int, body: bytes) -> bool:
    try:
        asking = wire.Netfilter(NFNL_SUBSYS_NFTABLES)
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                tuple(asking.request(kind, 0, body, family))
        finally:
            asking.close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError("nft list", error.errno or errno.EIO, "run as root") from None
    return True


def table_names() -> tuple[str, ...]:
    """Family and name of every table, of any program.

    Raises:
        KernelError: the kernel has no nftables, or we may not ask.
    """
    found = []
    for answer in _dump(NFT_MSG_GETTABLE, list):
        for kind, begin, end in wire.attributes(answer, wire.Netfilter.HEADER_BYTES, len(answer)):
            if kind == NFTA_TABLE_NAME:
                family = _FAMILY_WORDS.get(answer[_FAMILY_PLACE], "?")
                found.append(f"{family} {answer[begin : end - 1].decode('ascii', 'replace')}")
    return tuple(found)


def handles(chains: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str, bytes]]:
    """The rules of chains of ours, by family, chain and the number that no other rule of the table ever has.

    Without a program, for a caller in a hurry: equal ones mean that no rule was removed, replaced or added. Policies
    and sets are not looked at.

    Args:
        chains: family and name of each.

    Raises:
        KernelError: the kernel has no nftables, or we may not ask.
    """
    wanted, found = frozenset(chains), set()
    for family in SETS:
        for table, chain, handle in map(_place, _dump(NFT_MSG_GETRULE, list, _text(NFTA_RULE_TABLE, TABLE), family)):
            if table == TABLE and (family, chain) in wanted:
                found.add((family, chain, handle))
    return frozenset(found)


def limit_rules() -> Mapping[tuple[str, str], int]:
    """How many rules each chain of the limits has, by family and chain. Raises KernelError as `handles`."""
    found, body = dict[tuple[str, str], int](), _text(NFTA_RULE_TABLE, LIMITS_TABLE)
    for family in FAMILIES:  # one rule at a time: of 250 vifs there are 12,000
        counts = _dump(NFT_MSG_GETRULE, lambda answers: Counter(_place(each)[:2] for each in answers), body, family)
        found |= {(family, chain): number for (table, chain), number in counts.items() if table == LIMITS_TABLE}
    return found


def _place(answer: bytes) -> tuple[str, str, bytes]:
    """Table, chain and handle of a rule."""
    parts = {
        kind: answer[begin:end]
        for kind, begin, end in wire.attributes(answer, wire.Netfilter.HEADER_BYTES, len(answer))
        if kind in (NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE)
    }
    table, chain = (parts[kind][:-1].decode("ascii", "replace") for kind in (NFTA_RULE_TABLE, NFTA_RULE_CHAIN))
    return table, chain, parts[NFTA_RULE_HANDLE]


def _dump(kind: int, gather: Callable[[Iterable[bytes]], _Gathered], body: bytes = b"", family: str = "") -> _Gathered:
    """What is gathered of the messages of a dump; one that a change interrupted is asked for again."""
    number = _NUMBERS.get(family, socket.AF_UNSPEC)
    try:
        asking = wire.Netfilter(NFNL_SUBSYS_NFTABLES)
        try:
            for _ in range(_TRIES):
                try:
                    return gather(asking.request(kind, wire.NLM_F_DUMP, body, number))
                except InterruptedError:
                    continue
            raise OSError(errno.EAGAIN, "the rules change all the time")
        finally:
            asking.close()
    except OSError as error:
        raise KernelError("nft list", error.errno or errno.EIO, "run as root") from None


def _text(kind: int, value: str) -> bytes:
    return wire.attribute(kind, value.encode("ascii") + b"\0")


def chains() -> tuple[Chain, ...]:
    """Every chain that has a hook, of any program.

    Raises:
        NftError: nft does not run, or does not know JSON.
    """
    import json  # 5 ms, and only `check` asks

    from ..core.shadows import Chain

    command = (_program(), "-j", "list", "chains")
    try:
        (done,) = programs.run_together([command], _SECONDS, longest=_LONGEST)
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None
    if done.status:
        raise _failed(done.output)
    try:
        listed = [entry["chain"] for entry in json.loads(done.output)["nftables"] if "chain" in entry]
        words = ("family", "table", "name", "type", "hook", "prio", "policy")
        hooked = [{"policy": "accept", **chain} for chain in listed if "hook" in chain]
        return tuple(Chain(*[chain[word] for word in words]) for chain in hooked)
    except (ValueError, KeyError) as error:
        raise NftError(f"nft -j list chains: not understood: {error!r}") from None


class Events(wire.Listener):
    """A socket that becomes readable when any program changes a rule, a set or a table."""

    def __init__(self) -> None:
        super().__init__(wire.NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), "nft events")


def _listed(kind: str, wanted: tuple[tuple[str, str], ...]) -> str:
    """Some blocks of our tables."""
    families = tuple(dict.fromkeys(family for family, _ in wanted))
    return listings.chosen(tables(families), kind, wanted)


def tables(families: tuple[str, ...] = FAMILIES) -> dict[str, str]:
    """What nft says of our tables, without counters; "" for one that is not there.

    Not `list chain` for each: version 1.0.6 finds only what the last such line of a transaction names.

    Raises:
        NftError: nft does not run.
    """
    program = _program()
    commands = [(program, "-s", "list", "table", family, TABLE) for family in families]
    return dict(zip(families, _outputs(commands), strict=True))


def _outputs(commands: Iterable[tuple[str, ...]]) -> list[str]:
    """What each of some listings says; "" for what is not there."""
    try:
        done = programs.run_together(commands, _SECONDS, longest=_LONGEST)
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None
    for each in done:
        if each.status and _GONE not in each.output:
            raise _failed(each.output)
    return ["" if each.status else each.output for each in done]


def _program() -> str:
    program = programs.find("nft")
    if not program:
        raise NftError("nft is not there", "install nftables")
    return program


def _failed(output: str) -> NftError:
    """The error for what nft would not list."""
    problem = f"nft: {_first_line(output)}"
    return _NotPermitted(problem, "run as root") if _NOT_PERMITTED in problem else NftError(problem)


def _first_line(output: str) -> str:
    # nft repeats the text and underlines it with ^^^; the first line says what and where.
    return output.partition("\n")[0] or "no word about why"
