# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables by its program: load a transaction, list chains. It decides nothing.

Loading and listing are the program's, because its text is what people read and write. What is asked more often, or in a
hurry, is asked of the kernel itself (`kernel`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...core.nft import listing_blocks
from ...core.nft.tables import FIREWALL, IP_FAMILIES, LIMITS, LIMITS_MAP, QUBES
from .. import programs

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from ...core.nft.foreign_chains import Chain

_SECONDS = 10.0  # 250 qubes with 20 rules each take 0.3 s; a busy machine more
_LONGEST = 1 << 22  # a set of thousands of addresses
_GONE, _NOT_PERMITTED = "No such file or directory", "Operation not permitted"


class NftError(programs.ProgramError):
    """nft is missing, too slow, or refuses a transaction, of which nothing is in force then.

    Trying again can help: another one may have changed the rules in that moment.
    """


class Refused(NftError):
    """nft ran, and it or the kernel took nothing of the transaction."""

    refused = True


class _NotPermitted(NftError):
    needs_root = True


# Without CAP_NET_ADMIN in the first user namespace nft cannot exceed the limit (SO_SNDBUFFORCE).
_TOO_LONG = "Message too long"
BUFFER = "the transaction exceeds the send buffer of its socket: raise net.core.wmem_max, or use fewer rules"


def run(text: str) -> None:
    """Load one transaction: all of it, or nothing.

    Args:
        text: in nft's own language, made of checked values only.

    Raises:
        NftError: it was not loaded.
    """
    end(begin(text))


def begin(text: str) -> programs.Started:
    """Start to load one transaction; to be handed to `end`. See `run`.

    Raises:
        NftError: nft could not be started.
    """
    try:
        return programs.start((_program(), "-f", "-"), input=text.encode())
    except programs.ProgramError as error:
        raise NftError(error.problem, error.remedy) from None


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
        raise Refused(f"nft: {_first_line(done.output)}", BUFFER if _TOO_LONG in done.output else "")


def listing(chains: Iterable[tuple[str, str]]) -> str:
    """Return what chains of ours hold, without counters; "" when one of them, or its table, is not there.

    Args:
        chains: family and name of each.

    Raises:
        NftError: nft does not run.
    """
    return _listed("chain", tuple(chains))


def limits(families: Iterable[str], *, counted: bool = False) -> str:
    """Return what is in the tables of the limits.

    Args:
        families: of the tables that there are; for none nft is not run.
        counted: with all elements and counters, of which there can be thousands; else the maps alone.

    Raises:
        NftError: nft does not run.
    """
    words = ("list", "table") if counted else ("-s", "list", "map")
    ends = (LIMITS,) if counted else (LIMITS, LIMITS_MAP)
    commands = [(_program(), *words, family, *ends) for family in families]
    return "\n".join(_outputs(commands))


def named_set(family: str, table: str, name: str) -> str:
    """Return what any set holds; "" when it, or its table, is not there.

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
    """Return what our table of this family holds, without counters; "" when it is not there.

    Raises:
        NftError: nft does not run.
    """
    return tables((family,))[family]


def chains() -> tuple[Chain, ...]:
    """Return every chain that has a hook, of any program.

    Raises:
        NftError: nft does not run, or does not know JSON.
    """
    import json  # 5 ms, and only `check` asks

    from ...core.nft.foreign_chains import Chain

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
        raise NftError(f"nft -j list chains: unexpected output: {error!r}") from None


def ruleset() -> tuple[list[Any], str]:
    """Return all rules of all programs: the objects that nft prints as JSON, and its text with the handles of rules.

    Raises:
        NftError: nft does not run, or does not know JSON.
    """
    import json  # 5 ms, and only a person asks

    objects, text = _outputs([(_program(), "-j", "list", "ruleset"), (_program(), "-a", "list", "ruleset")])
    try:
        listed: list[Any] = json.loads(objects)["nftables"] if objects else []
    except (ValueError, KeyError, TypeError) as error:
        raise NftError(f"nft -j list ruleset: unexpected output: {error!r}") from None
    return listed, text


def _listed(kind: str, wanted: tuple[tuple[str, str], ...]) -> str:
    """Some blocks of our tables."""
    families = tuple(dict.fromkeys(family for family, _ in wanted))
    return listing_blocks.chosen(tables(families), kind, wanted)


def tables(families: tuple[str, ...] = IP_FAMILIES) -> dict[str, str]:
    """Return what nft says of our tables, without counters; "" for one that is not there.

    Not `list chain` for each: version 1.0.6 finds only what the last such line of a transaction names.

    Raises:
        NftError: nft does not run.
    """
    program = _program()
    commands = [(program, "-s", "list", "table", family, QUBES) for family in families]
    return dict(zip(families, _outputs(commands), strict=True))


def firewall(families: Iterable[str], *, counted: bool = False) -> dict[str, str]:
    """Return what nft says of the tables of the firewall; "" for one that is not there.

    Args:
        families: that are listed; for none nft is not run.
        counted: with counters.

    Raises:
        NftError: nft does not run.
    """
    families = tuple(families)
    quiet = () if counted else ("-s",)
    commands = [(_program(), *quiet, "list", "table", family, FIREWALL) for family in families]
    return dict(zip(families, _outputs(commands), strict=True))


def _outputs(commands: Sequence[tuple[str, ...]]) -> list[str]:
    """Return what each of some listings says; "" for what is not there. Without a listing nft is not run."""
    if not commands:
        return []
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
        raise NftError("nft is not installed", "install nftables")
    return program


def _failed(output: str) -> NftError:
    """The error for what nft would not list."""
    problem = f"nft: {_first_line(output)}"
    return _NotPermitted(problem, "run as root") if _NOT_PERMITTED in problem else NftError(problem)


def _first_line(output: str) -> str:
    # nft repeats the text and underlines it with ^^^; the first line says what and where.
    return output.partition("\n")[0] or "no error message"
