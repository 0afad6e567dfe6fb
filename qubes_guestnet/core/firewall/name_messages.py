# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages between the agent and the name look-up: one request, then one answer for each name.

A message is ASCII text in a canonical form; both sides refuse any other form. A request:

    names 1
    server 10.139.1.1 53
    ask 4 example.org

and an answer, one line without an end of line:

    answer 4 example.org addresses 300 192.0.2.1 192.0.2.2
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable

from .. import checks, endpoint
from ..endpoint import Endpoint
from ..namedtuple import NamedTuple
from ..values import IPV4, IPV6, IPAddress

HEADER = "names 1"
MOST_QUESTIONS = 128
MOST_SERVERS = 4
MOST_ADDRESSES = 64  # per name and family (F-25)
LONGEST_REQUEST = 40_960
LONGEST_ANSWER = 4096
LONGEST_NAME, LONGEST_LABEL = 253, 63  # RFC 1035, 2.3.4, as text
LONGEST_TTL = 86_400

ADDRESSES, PART, NODATA, NXDOMAIN, FAILED, REFUSED = "addresses", "part", "nodata", "nxdomain", "failed", "refused"
# The reasons for a failed look-up; that of the last server counts.
TIMEOUT, SERVER, GARBAGE, LOOP, UNREACHABLE, PROGRAM = "timeout", "server", "garbage", "loop", "unreachable", "program"
REASONS = {
    TIMEOUT: "the name servers do not answer",
    SERVER: "the name servers refuse or fail",
    GARBAGE: "the name servers' answer is malformed",
    LOOP: "the name's aliases form a loop",
    UNREACHABLE: "the name servers cannot be reached",
    PROGRAM: "the name look-up does not work; see: journalctl -u qubes-guestnet-names",
}
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME = _LETTERS | {"."}
_ADDRESS = {IPV4: frozenset("0123456789."), IPV6: frozenset("0123456789abcdef:.")}
# Names below these are never looked up: RFC 6761 (6.3), RFC 6762 (3).
_LOCAL = ("localhost", "local")


class _QuestionFields(NamedTuple):
    family: int
    name: str


class Question(_QuestionFields):
    """A question for the addresses of one name and family.

    Args:
        family: 4 or 6.
        name: in lower case, without a trailing dot; at most 253 characters of `a-z0-9._-`.

    Raises:
        ValueError: a field is invalid.
    """

    __slots__ = ()

    def __new__(cls, family: int, name: str) -> Question:
        """Check the fields."""
        if family not in _ADDRESS or not 0 < len(name) <= LONGEST_NAME or not _NAME.issuperset(name):
            raise ValueError(f"no question for a name: {family} {name[:LONGEST_NAME]!r}")
        return super().__new__(cls, family, name)


class _AnswerFields(NamedTuple):
    question: Question
    kind: str
    ttl: int = 0
    addresses: tuple[IPAddress, ...] = ()
    reason: str = ""


class Answer(_AnswerFields):
    """The answer to one question.

    Args:
        question: the question.
        kind: ADDRESSES; PART: the name has more addresses than fit; NODATA: the name has no address of this family;
            NXDOMAIN: the name does not exist; FAILED: there was no usable reply; REFUSED: the name is never looked up.
        ttl: time to live in seconds, up to a day; 0 for FAILED and REFUSED.
        addresses: for ADDRESSES and PART, 1 to 64, sorted, each once.
        reason: for FAILED, one of REASONS.

    Raises:
        ValueError: the fields contradict each other.
    """

    __slots__ = ()

    def __new__(
        cls, question: Question, kind: str, ttl: int = 0, addresses: Iterable[IPAddress] = (), reason: str = ""
    ) -> Answer:
        """Check the fields."""
        addresses = tuple(addresses)
        some, timed, why = _FORMS.get(kind, (False, False, False))
        right = (
            kind in _FORMS
            and some == bool(addresses)
            and len(addresses) <= MOST_ADDRESSES
            and all(address.version == question.family for address in addresses)
            and all(int(one) < int(next_) for one, next_ in itertools.pairwise(addresses))
            and 0 <= ttl <= (LONGEST_TTL if timed else 0)
            and (reason in REASONS if why else not reason)
        )
        if not right:
            raise ValueError(f"no answer: {kind[:20]!r} {ttl} {reason[:20]!r}, {len(addresses)} addresses")
        return super().__new__(cls, question, kind, ttl, addresses, reason)


# Kind → whether it has addresses, a time to live, a reason.
_FORMS = {
    ADDRESSES: (True, True, False),
    PART: (True, True, False),
    NODATA: (False, True, False),
    NXDOMAIN: (False, True, False),
    FAILED: (False, False, True),
    REFUSED: (False, False, False),
}


class Request(NamedTuple):
    """A request for several names.

    Args:
        servers: servers that client qubes are redirected to, in the order of use.
        questions: each once.
    """

    servers: tuple[Endpoint, ...]
    questions: tuple[Question, ...]


def canonical(name: str) -> str:
    """Return a name in its canonical form: in lower case, without a trailing dot."""
    return name.lower().removesuffix(".")


def problem_of(name: str) -> str:
    """Return why a name is never looked up, "" if it may be (F-11, F-26).

    Args:
        name: as `canonical` returns it.
    """
    labels = name.split(".")
    if not 0 < len(name) <= LONGEST_NAME:
        return f"a name has 1 to {LONGEST_NAME} characters"
    if not _NAME.issuperset(name):
        return "a name has letters, digits, hyphens, underscores and dots"
    if not all(0 < len(label) <= LONGEST_LABEL for label in labels):
        return f"each part of a name has 1 to {LONGEST_LABEL} characters"
    if checks.is_decimal(labels[-1], LONGEST_LABEL):
        return "a host name does not end with a number; write an address or network instead"
    if labels[-1] in _LOCAL:
        return f"names below {labels[-1]} are never looked up"
    return ""


def render_request(request: Request) -> bytes:
    """Return the message.

    Raises:
        ValueError: there are no or too many servers or questions, or duplicates.
    """
    servers, questions = request
    if not 0 < len(servers) <= MOST_SERVERS or not 0 < len(questions) <= MOST_QUESTIONS:
        raise ValueError(f"a request has 1 to {MOST_SERVERS} servers and 1 to {MOST_QUESTIONS} names")
    if len(set(servers)) < len(servers) or len(set(questions)) < len(questions):
        raise ValueError("a request has each server and each name once")
    lines = [HEADER, *(f"server {server.address} {server.port}" for server in servers)]
    lines += [f"ask {question.family} {question.name}" for question in questions]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def parse_request(untrusted_data: bytes) -> Request:
    """Parse a request.

    Raises:
        ValueError: the message is not a valid request.
    """
    text = _text(untrusted_data, LONGEST_REQUEST)
    header, *lines = text.split("\n")[:-1] or [""]
    if header != HEADER or len(lines) > MOST_SERVERS + MOST_QUESTIONS:
        raise ValueError("not a request of this version, or too long")
    words = [line.split(" ") for line in lines]
    if any(len(line) != 3 for line in words):
        raise ValueError("a line has three words")
    servers = [Endpoint(_server(second), endpoint.port(third)) for first, second, third in words if first == "server"]
    questions = [Question(_number(second, 9), third) for first, second, third in words if first == "ask"]
    request = Request(tuple(servers), tuple(questions))
    if render_request(request) != untrusted_data:
        raise ValueError("not in the form of a request")
    return request


def render_answer(answer: Answer) -> bytes:
    """Return the message."""
    words = ["answer", str(answer.question.family), answer.question.name, answer.kind]
    some, timed, why = _FORMS[answer.kind]
    words += [str(answer.ttl)] if timed else []
    words += [str(address) for address in answer.addresses] if some else []
    words += [answer.reason] if why else []
    return " ".join(words).encode("ascii")


def parse_answer(untrusted_data: bytes) -> Answer:
    """Parse an answer.

    Raises:
        ValueError: the message is not a valid answer.
    """
    words = _text(untrusted_data, LONGEST_ANSWER).split(" ")
    if len(words) < 4 or words[0] != "answer" or len(words) > 5 + MOST_ADDRESSES:
        raise ValueError("no answer")
    question = Question(_number(words[1], 9), words[2])
    kind, rest = words[3], words[4:]
    some, timed, why = _FORMS.get(kind, (False, False, False))
    ttl = _number(rest.pop(0), LONGEST_TTL) if timed and rest else 0
    addresses = [address_of(question.family, word) for word in rest] if some else []
    answer = Answer(question, kind, ttl, addresses, "".join(rest) if why else "")
    if render_answer(answer) != untrusted_data:
        raise ValueError("not in the form of an answer")
    return answer


def address_of(family: int, untrusted_text: str) -> IPAddress:
    """Parse an address of a family. It need not be a host's, because the owner of a name may choose any.

    Raises:
        ValueError: it is not an address of the family.
    """
    if len(untrusted_text) > 45 or not _ADDRESS[family].issuperset(untrusted_text):
        raise ValueError("not an address of this family")
    return ipaddress.IPv4Address(untrusted_text) if family == IPV4 else ipaddress.IPv6Address(untrusted_text)


def _server(untrusted_text: str) -> IPAddress:
    return address_of(IPV6 if ":" in untrusted_text else IPV4, untrusted_text)


def _number(untrusted_text: str, most: int) -> int:
    if not checks.is_decimal(untrusted_text, 6) or int(untrusted_text) > most:
        raise ValueError("not a number, or too large")
    return int(untrusted_text)


def _text(untrusted_data: bytes, longest: int) -> str:
    if len(untrusted_data) > longest or not untrusted_data.isascii():
        raise ValueError("not ASCII, or too long")
    return untrusted_data.decode("ascii")
