# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up, asked by the agent's end of it: beside dnsmasq, and beside a server that does all it can."""

from __future__ import annotations

import ipaddress
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall import name_messages as messages
from qubes_guestnet.core.firewall.name_messages import Answer, Question
from tests.support.eventually import eventually, never
from tests.support.needs import needs
from tests.support.programs import name_server
from tests.support.programs.name_server import LONG, NOT_THIS, REPLIES, SAYS, ZONE, Server
from tests.support.programs.names_program import MOST_MEMORY_KIB, Program, answers, ready

FIRST, SECOND, THIRD = endpoint.of(tuple(map(ipaddress.ip_address, ("10.139.1.1", "10.139.1.2", "2001:db8::53"))))
HOSTS = ("www.example.com,192.0.2.80,2001:db8::80", "v4.example.com,192.0.2.4")
MANY = [f"--host-record=many.example.com,198.18.0.{number}" for number in range(1, 101)]


@pytest.fixture(autouse=True)
def wired() -> None:
    needs("ip")
    for line in ("link set lo up", *(f"address add {each.address} dev lo" for each in (FIRST, SECOND, THIRD))):
        subprocess.run(["ip", *line.split()], check=True)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def start(**options: object) -> Program:
        made.append(Program(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for program in made:
        program.close()


@pytest.fixture
def program(started: Callable[..., Program]) -> Program:
    return started()


@pytest.fixture
def dnsmasq(program: Program) -> Iterator[None]:
    needs("dnsmasq")
    command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local-ttl=300"]
    command += ["--bind-interfaces", f"--listen-address={FIRST.address}", f"--listen-address={THIRD.address}"]
    command += ["--local=/example.com/", *(f"--host-record={host}" for host in HOSTS), *MANY]
    command += ["--cname=alias.example.com,www.example.com,77", "--host-record=localhost.,192.0.2.66"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ready(FIRST, program, "www.example.com")
    yield
    process.kill()
    process.wait()


@pytest.fixture
def hostile() -> Server:
    return Server(str(FIRST.address))


def named(*labels: str) -> list[Question]:
    return [Question(4, f"{label}.{ZONE}") for label in labels]


def texts(answer: Answer) -> list[str]:
    return [str(address) for address in answer.addresses]


@pytest.mark.parametrize("server", [FIRST, THIRD], ids=["IPv4", "IPv6"])
def test_names_of_an_honest_server(program: Program, dnsmasq: None, server: Endpoint) -> None:
    names = ["www.example.com", "v4.example.com", "alias.example.com", "many.example.com", "no.example.com"]
    found = program.ask([server], *(Question(4, name) for name in names))
    assert found["www.example.com"] == Answer(
        Question(4, "www.example.com"), messages.ADDRESSES, 300, [ipaddress.ip_address("192.0.2.80")]
    )
    assert texts(found["v4.example.com"]) == ["192.0.2.4"]
    assert (texts(found["alias.example.com"]), found["alias.example.com"].ttl) == (["192.0.2.80"], 77)
    assert found["no.example.com"].kind == messages.NXDOMAIN
    # Over TCP, because 100 addresses are too long for a datagram.
    assert found["many.example.com"].kind == messages.PART
    assert texts(found["many.example.com"]) == [f"198.18.0.{number}" for number in range(1, 65)]
    found = program.ask([server], *(Question(6, name) for name in names))
    assert texts(found["www.example.com"]) == texts(found["alias.example.com"]) == ["2001:db8::80"]
    assert found["v4.example.com"].kind == messages.NODATA
    assert found["no.example.com"].kind == messages.NXDOMAIN


def test_the_other_server_is_asked_when_one_is_away(program: Program, dnsmasq: None) -> None:
    """At the first nothing listens; to the second there is no way."""
    for away in (SECOND, Endpoint(ipaddress.ip_address("198.51.100.1"))):
        assert texts(program.ask([away, FIRST], Question(4, "v4.example.com"))["v4.example.com"]) == ["192.0.2.4"]
    answer = program.ask([SECOND], Question(4, "v4.example.com"))["v4.example.com"]
    assert (answer.kind, answer.reason) == (messages.FAILED, messages.UNREACHABLE)


@pytest.mark.parametrize("label", ["silent", "servfail", "noisy", "loop", "close", "drip"])
def test_the_second_server_is_asked_too(program: Program, hostile: Server, label: str) -> None:
    good = Server(str(SECOND.address), says="good")
    answer = program.ask([FIRST, SECOND], *named(label))[f"{label}.{ZONE}"]
    assert texts(answer) == ["192.0.2.1"]
    assert hostile.asked
    assert good.asked


def test_some_names_are_never_asked_for(program: Program, hostile: Server) -> None:
    names = ("localhost", "a.localhost", "printer.local", "127.1", "a..b", ".", "-.1")
    found = program.ask([FIRST], *(Question(4, name) for name in names))
    assert {name: answer.kind for name, answer in found.items()} == dict.fromkeys(names, messages.REFUSED)
    assert hostile.asked == []


def test_no_file_of_the_qube_says_where_or_what_to_ask(program: Program, hostile: Server, tmp_path: Path) -> None:
    """Search domains, /etc/hosts: the name is asked as it is, of the servers in the request."""
    for path, text in (("/etc/hosts", "192.0.2.66 good.test\n"), ("/etc/resolv.conf", f"search {ZONE}\n")):
        (tmp_path / "file").write_text(text)
        subprocess.run(["mount", "--bind", str(tmp_path / "file"), path], check=True)
        assert program.ask([FIRST], Question(4, "good"))["good"].addresses
        assert texts(program.ask([FIRST], Question(4, "good.test"))["good.test"]) == ["192.0.2.1"]
    assert set(hostile.asked) == {"good", "good.test"}


@pytest.mark.parametrize("at", ["127.0.0.1", "::1", "127.3.2.1"])
def test_the_qubes_own_services_are_never_asked(program: Program, at: str) -> None:
    own = Server(at)
    (answer,) = program.ask([Endpoint(ipaddress.ip_address(at))], *named("good")).values()
    assert (answer.kind, answer.reason) == (messages.FAILED, messages.UNREACHABLE)
    assert own.asked == []


# --- a server that does all it can -----------------------------------------------------------------------------------

WAYS = {
    "silent": "timeout",
    "empty": "timeout",
    "late": (["192.0.2.1"], 300),
    "second": (["192.0.2.1"], 300),  # the first datagram is lost
    "close": "garbage",
    "partly": "garbage",
    "drip": "timeout",
    "hold": "timeout",
}


def outcome(answer: Answer) -> object:
    if answer.kind == messages.FAILED:
        return answer.reason
    if len(answer.addresses) == messages.MOST_ADDRESSES:
        return ("part" if answer.kind == messages.PART else "whole", len(answer.addresses))
    return (texts(answer), answer.ttl) if answer.addresses else (answer.kind, answer.ttl)


def expected(label: str) -> object:
    says = {**SAYS, **WAYS}[label]
    if says == NOT_THIS:
        return "garbage" if label in LONG else "timeout"
    return says


@pytest.mark.behaviour("B66")
def test_each_hostile_reply_costs_bounded_time_and_memory(program: Program, hostile: Server) -> None:
    labels = [*REPLIES, *LONG, *WAYS]
    found = program.ask([FIRST], *named(*labels))
    assert {label: outcome(found[f"{label}.{ZONE}"]) for label in labels} == {
        label: expected(label) for label in labels
    }
    assert program.memory() < MOST_MEMORY_KIB
    assert program.log() == []
    # A thousand of the largest add nothing.
    for number in range(8):
        program.ask([FIRST], *named(*(f"{label}.x{number}-{copy}" for label in LONG for copy in range(18))))
    assert program.memory() < MOST_MEMORY_KIB
    assert texts(program.ask([FIRST], *named("good"))[f"good.{ZONE}"]) == ["192.0.2.1"]


def test_a_flood_ends_and_other_names_have_their_answers(program: Program, hostile: Server) -> None:
    flooded = program.start([FIRST], *named(*(f"flood.{number}" for number in range(15))))
    assert texts(program.ask([FIRST], *named("good"))[f"good.{ZONE}"]) == ["192.0.2.1"]
    found = answers(flooded)
    flooded.close()
    assert {answer.kind for answer in found.values()} == {messages.FAILED}
    assert program.memory() < MOST_MEMORY_KIB


def test_sixteen_names_are_in_flight(program: Program, hostile: Server) -> None:
    look_up = program.start([FIRST], *named(*(f"silent.{number}" for number in range(60))))
    eventually(lambda: len(set(hostile.asked)) == 16, what="16 names")
    never(lambda: len(set(hostile.asked)) > 16, 1.0, "a 17th name")
    look_up.close()


@pytest.mark.behaviour("B67")
def test_what_a_client_that_is_gone_has_asked_is_given_up(program: Program, hostile: Server) -> None:
    look_up = program.start([FIRST], *named(*(f"silent.{number}" for number in range(120))))
    eventually(lambda: len(set(hostile.asked)) == 16, what="16 names")
    look_up.close()
    count = len(hostile.asked)
    # None of the others is asked for, and none of these a second time, as they would be after two seconds.
    assert texts(program.ask([FIRST], *named("good"))[f"good.{ZONE}"]) == ["192.0.2.1"]
    never(lambda: len(hostile.asked) > count + 1, 3, "a question of the client that is gone")


@pytest.mark.behaviour("B67")
def test_each_answer_comes_when_it_is_there(program: Program, hostile: Server) -> None:
    look_up = program.start([FIRST], *named("silent", "good"))
    poll = select.poll()
    poll.register(look_up.fileno(), select.POLLIN)
    poll.poll(20_000)
    (first,) = look_up.read()
    assert first.question.name == f"good.{ZONE}"
    assert not look_up.ended
    assert answers(look_up)[f"silent.{ZONE}"].reason == messages.TIMEOUT
    look_up.close()


# --- its clients and its life ----------------------------------------------------------------------------------------


def connected(program: Program) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(30)
    made.connect(program.path)
    return made


@pytest.mark.parametrize("data", [b"names 1\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 60_000, b"\xff" * 100])
def test_what_is_no_request_has_no_answer(program: Program, hostile: Server, data: bytes) -> None:
    with connected(program) as client:
        client.send(data)
        assert client.recv(100) == b""
    (line,) = program.log()
    assert "malformed request" in line
    assert program.ask([FIRST], *named("good"))[f"good.{ZONE}"].addresses


def test_a_client_that_does_not_read_or_send_takes_no_place_for_long(program: Program, hostile: Server) -> None:
    questions = tuple(named(*(f"sixtyfour.{number}" for number in range(128))))
    request = messages.render_request(messages.Request((FIRST,), questions))
    idle = [connected(program) for _ in range(3)]
    for client in idle[:2]:
        client.send(request)  # more than its buffer has room for
    later = [connected(program) for _ in range(3)]
    assert program.ask([FIRST], *named("good"))[f"good.{ZONE}"].addresses
    for client in idle + later:
        client.close()
    assert program.memory() < MOST_MEMORY_KIB


def test_it_ends_when_it_is_idle_and_not_before(started: Callable[..., Program], hostile: Server) -> None:
    program = started(idle=0.5)
    assert program.ask([FIRST], *named("silent"))[f"silent.{ZONE}"].reason == messages.TIMEOUT
    assert program.ended() == 0
    assert program.log() == []


def test_without_its_library_it_says_so_and_answers(started: Callable[..., Program], hostile: Server) -> None:
    """To end would have systemd start it again, at once, for the client that waits."""
    code = "import sys; sys.modules['dns'] = None; from qubes_guestnet.names.service import main; main(sys.argv[1:])"
    program = started(arguments=("-c", code))
    answer = program.ask([FIRST], *named("good"))[f"good.{ZONE}"]
    assert (answer.kind, answer.reason) == (messages.FAILED, messages.PROGRAM)
    (line,) = program.log()
    assert "install python3-dnspython" in line
    assert hostile.asked == []
    assert program.running


def test_an_error_that_it_does_not_know_takes_one_name(started: Callable[..., Program], hostile: Server) -> None:
    code = (
        "import sys; from qubes_guestnet.names import lookup, service\n"
        "real = lookup.look_up\n"
        "async def broken(question, servers):\n"
        "    if question.name.startswith('good'): raise KeyError('thrown')\n"
        "    return await real(question, servers)\n"
        "lookup.look_up = broken; service.main(sys.argv[1:])"
    )
    program = started(arguments=("-c", code))
    found = program.ask([FIRST], *named("good", "both"))
    assert found[f"good.{ZONE}"].reason == messages.PROGRAM
    assert texts(found[f"both.{ZONE}"]) == ["192.0.2.1"]
    (line,) = program.log()
    assert "KeyError('thrown')" in line
    assert name_server.ZONE in line
