# SPDX-License-Identifier: GPL-2.0-or-later
"""`firewall show|test|log|print` in a provider, beside real packets: what they say is what happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.programs.name_lookup import NameServer, NamesUnit
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import DNS, GATEWAY, HALTED, ROUTER, WORLD, WORLD6, Client

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads((DOCS / "firewall.schema.json").read_text(encoding="utf-8"))
ENTRIES = (
    "action=accept proto=udp dstports=9-9", "action=accept dsthost=www.example.org proto=tcp",
    "action=accept specialtarget=dns", "action=drop dst4=203.0.113.0/24", "action=accept dst4=203.0.113.5/32",
)  # fmt: skip
LOG_TABLE = "qubes-log"


def valid(name: str, data: Any) -> Any:
    """The same data, held against one definition of the schema."""
    definition = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(definition).validate(data)
    return data


def asked(host: Enforcing, *words: object) -> tuple[int, str]:
    """`firewall test`: its exit status, and its last line or what it complains of."""
    done = host.qube.guestnet("firewall", "test", *map(str, words), check=False)
    return done.returncode, (done.stdout.splitlines() or [done.stderr])[-1]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_show_and_print_say_is_in_force() -> None:
    host = Enforcing()
    server, _unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD, WORLD6])
    client, waiting = host.attach(), host.attach(5)
    host.applied(client.ip, *ENTRIES)
    eventually(lambda: host.named("www.example.org", 4) == {WORLD}, trouble=host.trouble)
    for port in (9, 9, 10):
        host.passes(client, port)
    lines = host.qube.guestnet("firewall", "show", client.ip).stdout.splitlines()
    assert lines[0] == f"vif4.0 {client.ip}: in force"
    assert lines[1:6] == [
        "  0000  action=accept proto=udp dstports=9-9  2 packets",
        "  0002  action=accept dsthost=www.example.org proto=tcp  0 packets",
        "  0004  action=accept specialtarget=dns  0 packets",
        "  0006  action=drop dst4=203.0.113.0/24  0 packets",
        "  0008  action=accept dst4=203.0.113.5/32  0 packets  # never decides: entry 0006 matches all of its packets",
    ]
    assert lines[6] == "  policy drop  1 packet"
    assert lines[7].startswith(f"  www.example.org: {WORLD} (received ")
    found = valid("show", json.loads(host.qube.guestnet("firewall", "show", "-j").stdout))
    states = {each["address"]: each["state"] for each in found["lists"]}
    assert states == {client.ip: "in force", client.ip6: "waiting", waiting.ip: "waiting", waiting.ip6: "waiting"}
    printed(host, client)
    host.applied(client.ip, "action=accept foo=1")
    done = host.qube.guestnet("firewall", "show", client.vif, check=False)
    assert (done.returncode, "BLOCKED" in done.stdout, "foo" in done.stdout) == (1, True, True)


def printed(host: Enforcing, client: Client) -> None:
    """What `print` says is what is loaded, and nft takes it."""
    text = host.qube.guestnet("firewall", "print").stdout
    names = [line for line in text.splitlines() if line.startswith("add rule ip qubes-firewall qbs-")]
    assert [line.rpartition('comment "')[2] for line in names] == [
        '0000"',
        '0002"',
        '0004"',
        '0006"',
        '0008"',
        'policy"',
    ]
    assert f"add element ip qubes-firewall dns-addr {{ {ROUTER} }}" in text
    host.qube.write("/run/rules", text)
    before = host.chain(client.ip)
    host.qube.run("unshare", "-n", "sh", "-ec", "nft -f /run/rules; nft -s list ruleset >/run/loaded")
    for rule in before:
        assert rule in host.qube.read("/run/loaded")


def test_print_takes_entries_from_a_file_and_names_all_errors(tmp_path: Path) -> None:
    def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qubes_guestnet", "firewall", "print", *words]
        return subprocess.run(command, input=text, capture_output=True, text=True)

    base = "/qubes-firewall/10.137.0.5"
    good = f"{base}/policy = drop\n{base}/0000 = action=accept proto=tcp dstports=443-443\n{base} = \n"
    done = run("-", text=good)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'qbs-10-137-0-5 meta l4proto tcp th dport 443 counter accept comment "0000"' in done.stdout
    assert subprocess.run(["nft", "-c", "-f", "-"], input=done.stdout, text=True).returncode == 0
    file = tmp_path / "entries"
    file.write_text(good + "/qubes-firewall/fd09::5/policy = drop\n/qubes-firewall/fd09::5/0000 = action=no foo=1\n")
    done = run(str(file), "--json")
    found = valid("print", json.loads(done.stdout))
    assert (done.returncode, found["blocked"], len(found["problems"])) == (1, ["fd09::5"], 2)
    for words, text, problem in (
        ((str(tmp_path / "none"),), "", "No such file or directory"),
        (("-",), "odd\n", "standard input, line 1: 'odd' is not an entry"),
        (("a", "b"), "", "usage: firewall print [FILE]"),
    ):
        done = run(*words, text=text)
        assert done.returncode in (1, 2)
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_test_says_is_what_happens_to_a_packet() -> None:
    host = Enforcing()
    client, other = host.attach(), host.attach(5)
    host.applied(
        client.ip,
        "action=accept proto=udp dstports=9-20",
        "action=accept specialtarget=dns",
        "action=accept proto=icmp",
    )
    host.applied(client.ip6, "action=accept proto=udp dstports=9-9")
    rules = (
        "add rule ip qubes custom-forward udp dport 11 ip daddr { 198.51.100.0/24 } counter drop",
        "add rule ip qubes custom-forward udp dport 12 iifname != \"vif4.0\" drop",
        "insert rule ip qubes-firewall forward udp dport 13 drop",
        "add table inet mine; add chain inet mine f { type filter hook forward priority 5; policy accept; }",
        "add rule inet mine f udp dport 14 ct state new oifgroup != 2 drop",
        "add rule inet mine f udp dport 15 meta mark 5 drop",
        "add chain inet mine p { type filter hook prerouting priority -150; }",
        "add rule inet mine p udp dport 16 meta mark set 5",
        "add rule inet mine f meta mark 5 drop",
    )  # fmt: skip
    for rule in rules:
        host.nft(rule)
    for port in (9, 10, 11, 12, 13, 14, 15, 16, 17, 21):
        passes = host.passes(client, port)
        status, said = asked(host, client.ip, WORLD, "udp", port)
        assert (status == 0) == passes, (port, said)
        assert status in (0, 3), (port, said)
    assert "custom-forward" in asked(host, client.vif, WORLD, "udp", 11)[1]
    assert asked(host, client.ip, WORLD, "udp", 21)[1].startswith("REFUSED: no entry of the list of 10.137.0.4 matches")
    for port, passes in ((9, True), (10, False)):
        assert host.passes(client, port, 6) == passes
        assert (asked(host, client.vif, WORLD6, "udp", port)[0] == 0) == passes
    assert asked(host, other.ip, WORLD)[1].startswith("DROPPED: the table qubes-firewall, which has no list of")
    assert asked(host, client.ip, DNS, "udp", 53) == (0, "PASSES: entry 0002 of the list of 10.137.0.4 accepts it")
    assert asked(host, client.ip, DNS, "tcp", 54)[1].startswith("REFUSED: base rules: ip qubes dns-reject")
    assert asked(host, client.ip, GATEWAY)[0] == 0
    assert asked(host, client.ip, GATEWAY, "tcp", 22)[1].startswith("REFUSED: provider itself: ip qubes input")
    for target in (HALTED, other.ip):
        assert asked(host, client.ip, target)[1].startswith("DROPPED: base rules: ip qubes ")
    found = valid("test", json.loads(host.qube.guestnet("firewall", "test", client.ip, WORLD, "-j").stdout))
    assert found["packets"][0]["decided_by"]["entry"] == 4
    host.nft("add rule inet mine f meta skuid 5 drop")
    assert asked(host, client.ip, WORLD)[0] == 4
    host.nft("delete table inet mine")
    host.qube.guestnet("forwarding", "off")
    assert "`forwarding off` was run" in asked(host, client.ip, WORLD)[1]


WRONG = (
    (("vif9.0", WORLD), "'vif9.0' is not a client qube of this provider; give an address or a vif: vif4.0 10.137.0.4"),
    (("vif4.0", "no.such.name.invalid"), "is neither an address nor a name that this qube can look up"),
    (("vif4.0", WORLD, "frob"), "'frob' is not a protocol; give tcp, udp, icmp, or a number up to 255"),
    (("vif4.0", WORLD, "tcp"), "a port is a number from 0 to 65535"),
    (("vif4.0", WORLD, "tcp", "65536"), "a port is a number from 0 to 65535"),
    (("vif4.0", WORLD, "icmp", "256"), "an ICMP type is a number from 0 to 255"),
    (("vif4.0", WORLD, "47", "5"), "protocol 47 has no ports"),
    (("vif4.0",), "usage: firewall test QUBE TO"),
)


def test_a_wrong_call_of_test_is_one_line() -> None:
    host = Enforcing()
    host.attach()
    for words, problem in WRONG:
        done = host.qube.guestnet("firewall", "test", *words, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert problem in done.stderr


# --- log -------------------------------------------------------------------------------------------------------------


def logging(host: Enforcing, *words: str) -> Service:
    """`firewall log`, once the kernel reports to it."""
    started = host.qube.spawn("log", sys.executable, "-m", "qubes_guestnet", "firewall", "log", *words)
    eventually(lambda: is_logging(host) or not started.running, trouble=started.output)
    return started


def is_logging(host: Enforcing) -> bool:
    return LOG_TABLE in host.oracle.run("nft", "list", "tables").stdout


def test_log_names_what_is_refused_and_leaves_nothing() -> None:
    host = Enforcing()
    client, other = host.attach(), host.attach(5)
    host.applied(client.ip, "action=accept proto=udp dstports=9-9", "action=drop proto=udp dstports=10-10")
    log = logging(host, client.vif)
    for port in (9, 10, 11):
        assert host.passes(client, port) == (port == 9)
    host.passes(other, 9)
    host.applied(client.ip, "action=drop")
    assert not host.passes(client, 9)
    eventually(lambda: len(log.output().splitlines()) == 3, trouble=log.output)
    lines = [line.partition(" ")[2] for line in log.output().splitlines()]
    assert lines == [
        f"{client.ip} → {WORLD} udp port 10 refused by entry 0002",
        f"{client.ip} → {WORLD} udp port 11 refused by the policy: no entry matches",
        f"{client.ip} → {WORLD} udp port 9 refused by entry 0000",
    ]
    second = host.qube.guestnet("firewall", "log", check=False)
    assert (second.returncode, "another `firewall log` is running" in second.stderr) == (1, True), second.stderr
    assert "foreign-chain" not in host.qube.guestnet("check", check=False).stdout
    log.kill()
    eventually(lambda: not is_logging(host))
    assert "lost" not in host.qube.guestnet("status", check=False).stdout


def test_log_of_all_qubes_ends_by_itself_and_at_ctrl_c() -> None:
    host = Enforcing()
    client, other = host.attach(), host.attach(5)
    host.applied(client.ip6, "action=accept proto=tcp")
    log = logging(host, "--json", "4")
    host.passes(client, 9, 6)
    host.passes(other, 9)
    began = time.monotonic()
    assert log.wait(20) == 0
    assert time.monotonic() - began < 10
    found = [valid("refusal", json.loads(line)) for line in log.output().splitlines()]
    assert [(each["from"], each["port"], each["entry"]) for each in found] == [
        (client.ip6, 9, None),
        (other.ip, 9, None),
    ]
    assert "committed no list" in found[1]["words"]
    log = logging(host)
    log.signal(signal.SIGINT)
    assert log.wait(10) == 0
    assert not is_logging(host)
    for words, problem in (
        (("0",), "not a number of seconds"),
        (("vif4.0", "x"), "not a number of seconds"),
        (("vif7.0",), "not a client qube"),
    ):
        done = host.qube.guestnet("firewall", "log", *words, check=False)
        assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_a_flood_is_cut_to_a_few_lines_and_loses_no_packet() -> None:
    host = Enforcing()
    client, flooding = host.attach(), host.attach(5)
    host.applied(client.ip, "action=accept proto=udp dstports=9-9")
    host.applied(flooding.ip, "action=drop")
    log = logging(host, "60")
    began = time.monotonic()
    for number in range(600):
        flooding.port.send(flooding.ip, WORLD, "flood", dport=10, sport=1000 + number)
        if number % 100 == 0:
            assert host.passes(client, 9)
    took = time.monotonic() - began
    log.signal(signal.SIGINT)
    assert log.wait(10) == 0
    lines = log.output().splitlines()
    assert 5 <= len(lines) <= 5 * (took + 2) + 1
    assert "more packets were refused" in lines[-1]


def test_a_qube_that_provides_no_network_has_no_lists() -> None:
    host = Enforcing(agent=False)
    host.remove("/qubes-netvm-network")
    for action in (("show",), ("test", "vif4.0", WORLD), ("log",), ("print",)):
        done = host.qube.guestnet("firewall", *action, check=False)
        assert (done.returncode, "is not a provider" in done.stderr) == (2, True), action
