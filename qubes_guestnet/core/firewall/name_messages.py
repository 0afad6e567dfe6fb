# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages between the agent and the name look-up: one request, then one answer for each name.

A message is ASCII text, and has one form only: what would be written differently is refused, on both sides. A request:

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
MOST_ADDRESSES = 64  # of one name and family (F-25)
LONGEST_REQUEST = 40_960
LONGEST_ANSWER = 4096
LONGEST_NAME, LONGEST_LABEL = 253, 63  # RFC 1035, 2.3.4, as text
LONGEST_TTL = 86_400

ADDRESSES, PART, NODATA, NXDOMAIN, FAILED, REFUSED = "addresses", "part", "nodata", "nxdomain", "failed", "refused"
# Why there is no usable answer; the last server's reason counts.
TIMEOUT, SERVER, GARBAGE, LOOP, UNREACHABLE, PROGRAM = "timeout", "server", "garbage", "loop", "unreachable", "program"
REASONS = {
    TIMEOUT: "the name servers do not answer",
    SERVER: "the name servers refuse or fail",
    GARBAGE: "the name servers' answer is malformed",
    LOOP: "the name is an alias without an end",
    UNREACHABLE: "the name servers cannot be reached",
    PROGRAM: "the name look-up does not work; see: journalctl -u qubes-guestnet-names",
}
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME = _LETTERS | {"."}
_ADDRESS = {IPV4: frozenset("0123456789."), IPV6: frozenset("0123456789abcdef:.")}
# Never asked of a name server: RFC 6761 (6.3), RFC 6762 (3).
_LOCAL = ("localhost", "local")


class _QuestionFields(NamedTuple):
    family: int
    name: str


class Question(_QuestionFields):
    """The addresses of one family that are wanted of one name.

    Args:
        family: 4 or 6.
        name: in lower case, without the dot at its end; up to 253 of `a-z0-9._-`.

    Raises:
        ValueError: it is something else.
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
    """What is known of one name.

    Args:
        question: that it answers.
        kind: ADDRESSES; PART, of a name that has more than are carried; NODATA, of a name without addresses of this
            family; NXDOMAIN, of a name that does not exist; FAILED, without a usable answer; REFUSED, of what is no
            name to ask for.
        ttl: time to live in seconds, up to a day; 0 with FAILED and REFUSED.
        addresses: of ADDRESSES and PART, 1 to 64, sorted, each once.
        reason: of FAILED, one of REASONS.

    Raises:
        ValueError: these do not go together.
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
    """What is asked at once.

    Args:
        servers: that the qubes would be led to, in the order of use.
        questions: each once.
    """

    servers: tuple[Endpoint, ...]
    questions: tuple[Question, ...]


def canonical(name: str) -> str:
    """Return a name as it is asked: in lower case, without one dot at its end."""
    return name.lower().removesuffix(".")


def problem_of(name: str) -> str:
    """Return why a name is never asked of a name server, "" if it may be (F-11, F-26).

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
        return "a name that ends with a number is none: give addresses as such"
    if labels[-1] in _LOCAL:
        return f"names below {labels[-1]} are never asked of a name server"
    return ""


def render_request(request: Request) -> bytes:
    """Return the message.

    Raises:
        ValueError: there is no server or no question, or too many, or one is there twice.
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
    """Return the request that a message is.

    Raises:
        ValueError: it is none.
    """
    text = _text(untrusted_data, LONGEST_REQUEST)
    header, *lines = text.split("\n")[:-1] or [""]
    if header != HEADER or len(lines) > MOST_SERVERS + MOST_QUESTIONS:
        raise ValueError("no request of this version, or too long")
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
    """Return the answer that a message is.

    Raises:
        ValueError: it is none.
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
    """Return an address of a family, also one that is no host's: what a name has is for its owner to say.

    Raises:
        ValueError: it is none.
    """
    if len(untrusted_text) > 45 or not _ADDRESS[family].issuperset(untrusted_text):
        raise ValueError("no address of this family")
    return ipaddress.IPv4Address(untrusted_text) if family == IPV4 else ipaddress.IPv6Address(untrusted_text)


def _server(untrusted_text: str) -> IPAddress:
    return address_of(IPV6 if ":" in untrusted_text else IPV4, untrusted_text)


def _number(untrusted_text: str, most: int) -> int:
    if not checks.is_decimal(untrusted_text, 6) or int(untrusted_text) > most:
        raise ValueError("no number, or too large")
    return int(untrusted_text)


def _text(untrusted_data: bytes, longest: int) -> str:
    if len(untrusted_data) > longest or not untrusted_data.isascii():
        raise ValueError("not ASCII, or too long")
    return untrusted_data.decode("ascii")
