# SPDX-License-Identifier: GPL-2.0-or-later
"""Every verb of the command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_guestnet.cli import options
from tests.support.eventually import eventually
from tests.support.qubes.appvm import (
    DNS,
    DNS2,
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    IP,
    IP6,
    MAC,
    AppVm,
)

PROGRAM = (sys.executable, "-m", "qubes_guestnet")
VERBS = {
    "agent": "stay",
    "apply": "configure",
    "plan": "print",
    "status": "print",
    "check": "list",
    "uplink": "configure",
    "wait-uplink": "return",
    "lab": "build",
}
PLAN = [
    "sysctl net/ipv4/conf/eth0/accept_redirects=0",
    "sysctl net/ipv4/conf/eth0/drop_gratuitous_arp=1",
    "sysctl net/ipv6/conf/eth0/accept_ra=0",
    "sysctl net/ipv6/conf/eth0/accept_redirects=0",
    "sysctl net/ipv6/conf/eth0/drop_unsolicited_na=1",
    "ip link set dev eth0 group 1",
    f"ip address add {IP}/32 dev eth0",
    f"ip neighbour replace {GATEWAY} lladdr fe:ff:ff:ff:ff:ff nud permanent dev eth0",
    "ip link set dev eth0 up",
    "ip route append default dev eth0 scope link proto 81",
]
PUBLISH = f"publish /etc/resolv.conf: {DNS} {DNS2}"
WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}


def here(*words: str) -> subprocess.CompletedProcess[str]:
    """The program in the test's own namespaces, where there is no QubesDB."""
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=30, check=False)


# --- usage ---------------------------------------------------------------------------------------------------------

WRONG = (
    "", "frob", "apply eth0 eth1", "plan --dry-run", "status --frob", "check eth0", "uplink", "uplink add",
    "uplink frob eth0", "uplink add eth0 eth1", "wait-uplink eth0", "wait-uplink --timeout", "wait-uplink --timeout x",
    "agent now", "--frob",
)  # fmt: skip


def test_wrong_usage() -> None:
    for words in WRONG:
        done = here(*words.split())
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("usage: qubes-guestnet"), words


def test_help_names_every_verb_and_the_exit_status() -> None:
    done = here("--help")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert all(f" {verb} {first}" in text for verb, first in VERBS.items())
    assert (
        "Exit status: 0 success, or nothing to do; 1 failure (status, check: there is a problem); 2 wrong usage" in text
    )


def test_help_of_each_verb() -> None:
    for verb in set(VERBS) - {"lab"}:
        done = here(verb, "--help")
        assert (done.returncode, done.stderr) == (0, ""), verb
        assert done.stdout.startswith(f"usage: qubes-guestnet {verb}")
        assert len(done.stdout.splitlines()) > 4, verb


@pytest.mark.parametrize(
    ("verb", "actions"),
    [(name, verb.choices) for name, verb in options.VERBS.items() if verb.choices],
    ids=[name for name, verb in options.VERBS.items() if verb.choices],
)
def test_help_says_what_each_action_does(verb: str, actions: tuple[str, ...]) -> None:
    lines = here(verb, "--help").stdout.partition("\nactions:\n")[2].splitlines()
    for action in actions:
        (line,) = [line for line in lines if line.split()[:1] == [action] and line.startswith("  ") and line[2] != " "]
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("words", ["apply", "plan", "status", "uplink"])
def test_help_says_what_an_interface_is(words: str) -> None:
    assert "such as eth0" in " ".join(here(words, "--help").stdout.split())


@pytest.mark.behaviour("B120")
@pytest.mark.parametrize("words", ["apply eth0 {}", "{}", "uplink {} eth0", "status --{}", "lab {}", "lab exec --{} x"])
def test_wrong_words_are_shown_escaped_and_lead_to_the_help(words: str) -> None:
    done = here(*(word.format("\x1b[31mred\nline\u202e") for word in words.split()))
    assert (done.returncode, done.stdout) == (2, "")
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    assert "red\nline" not in done.stderr
    assert done.stderr.endswith(" --help` explains it\n")


def test_what_is_not_there_to_be_taken_down_is_said() -> None:
    """A mistyped name is not passed over without a word; a name that is gone is no failure (B18)."""
    appvm = AppVm()
    appvm.plug("eth1", "00:16:3e:5e:6c:99", "vif5.1")
    for name, why in (("eth7", "does not exist"), ("eth1", "was not configured by qubes-guestnet")):
        assert appvm.qube.guestnet("uplink", "remove", name).stdout == f"{name} {why}: nothing to do\n"


@pytest.mark.parametrize("verb", ["apply", "plan"])
def test_the_interface_of_a_qube_behind_is_no_uplink(verb: str) -> None:
    failed = AppVm().qube.guestnet(verb, "vif4.0", check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == (
        "qubes-guestnet: vif4.0 is the interface of a client qube, not an uplink; "
        "`qubes-guestnet status vif4.0` shows it; "
        "Xen's hotplug configures it, and so does `apply` without a name\n"
    )


def test_version() -> None:
    done = here("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "qubes-guestnet"


def test_without_qubesdb_one_line_says_what_to_do() -> None:
    for words in ("apply", "plan", "plan --json", "status", "status --json", "wait-uplink --timeout 0"):
        done = here(*words.split())
        assert (done.returncode, done.stdout) == (1, ""), words
        assert done.stderr.startswith("qubes-guestnet: "), words
        assert "qubes-db.service running?" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# --- plan and apply ------------------------------------------------------------------------------------------------


def test_what_plan_prints_is_what_apply_does() -> None:
    appvm = AppVm()
    planned = appvm.qube.guestnet("plan")
    assert ([line.partition("  # ")[0] for line in planned.stdout.splitlines()], planned.stderr) == (
        [*PLAN, PUBLISH],
        "",
    )
    data = json.loads(appvm.qube.guestnet("plan", "--json").stdout)
    assert [each["operation"] for each in data] == [*PLAN, PUBLISH]
    assert f"{PLAN[8]}  # down → up: the interface is ready" in planned.stdout.splitlines()
    assert data[6] == {
        "operation": PLAN[6],
        "interface": "eth0",
        "is": "absent",
        "will_be": f"{IP}/32",
        "reason": "dom0 gives this address",
    }
    dry = appvm.qube.guestnet("apply", "--dry-run")
    assert dry.stdout == planned.stdout
    assert appvm.oracle.addresses("eth0") == set()
    assert appvm.servers() == []
    assert not appvm.qube.path("/run/qubes-guestnet").exists()
    applied = appvm.qube.guestnet("apply")
    assert applied.stdout.splitlines() == [*PLAN, "/etc/resolv.conf written"]
    for verb in ("apply", "plan"):
        again = appvm.qube.guestnet(verb)
        assert (again.stdout, again.stderr) == ("", "")
    assert json.loads(appvm.qube.guestnet("plan", "--json").stdout) == []


def test_the_words_of_a_plan_are_commands_that_work() -> None:
    """What it prints can be pasted into a shell, and gives the same network."""
    appvm = AppVm(ENTRIES6)
    lines = appvm.qube.guestnet("plan").stdout.splitlines()
    appvm.oracle.run("sh", "-ec", "\n".join(line for line in lines if line.startswith(("ip ", "sysctl "))))
    appvm.check(servers=None, **WITH6)
    (left,) = appvm.qube.guestnet("plan").stdout.splitlines()
    assert left.startswith(f"{PUBLISH}  # no nameserver → {DNS} {DNS2}: ")


@pytest.mark.parametrize("name", ["eth0", "eth1"])
def test_one_interface_only(name: str) -> None:
    appvm = AppVm()
    other = "00:16:3e:5e:6c:99"
    appvm.write(f"/net-config/{other}/ip", "192.168.7.5")
    appvm.plug("eth1", other, "vif5.1")
    appvm.qube.guestnet("apply", name)
    assert appvm.oracle.addresses("eth0") == ({f"{IP}/32"} if name == "eth0" else set())
    assert appvm.oracle.addresses("eth1") == ({"192.168.7.5/32"} if name == "eth1" else set())


@pytest.mark.behaviour("B141")
@pytest.mark.parametrize(
    "words", ["status {}", "status {} --json", "plan {}", "plan --json {}", "apply {}", "apply --dry-run {}",
              "uplink add {}"]
)  # fmt: skip
def test_a_mistyped_interface_is_wrong_usage_and_the_real_ones_are_named(words: str) -> None:
    appvm = AppVm()
    appvm.plug("eth1", "00:16:3e:5e:6c:99", "vif5.1")
    for name in ("eth2", "eth", "eth0 ", "\x1b[31m", "x" * 100):
        failed = appvm.qube.guestnet(*(word.format(name) for word in words.split()), check=False)
        assert (failed.returncode, failed.stdout) == (2, ""), name
        (line,) = failed.stderr.splitlines()
        assert line.startswith("qubes-guestnet: dom0 does not manage the interface "), line
        assert line.endswith("; it manages eth0"), line
        assert "\x1b" not in line
    assert appvm.oracle.addresses("eth0") == set()
    for name in ("eth1", "lo"):  # these are there, and dom0 manages another one: udev calls for each card
        done = appvm.qube.guestnet(*(word.format(name) for word in words.split()), check=False)
        assert done.returncode == (0 if words.startswith("uplink") else 2), name
        assert ("nothing to do" in done.stdout) == words.startswith("uplink")


@pytest.mark.behaviour("B141")
def test_the_real_names_where_there_is_no_interface() -> None:
    appvm = AppVm(plugged=False)
    failed = appvm.qube.guestnet("status", "eth0", check=False)
    assert failed.returncode == 2
    assert failed.stderr.endswith(f"; the interface with the address {MAC} does not exist\n")
    appvm.qube.guestnet("uplink", "remove", "eth0")  # it went before its unit was stopped
    appvm = AppVm({})
    failed = appvm.qube.guestnet("status", "eth0", check=False)
    assert failed.returncode == 2
    assert failed.stderr.endswith("; it manages no interface of this qube\n")


def test_apply_with_an_error_does_the_rest_and_says_so() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip6": "fe80::1", "/qubes-secondary-dns": "10.139.1.2"})
    failed = appvm.qube.guestnet("apply", check=False)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[: len(PLAN)] == PLAN
    assert failed.stderr.startswith("qubes-guestnet: /qubes-ip6: 'fe80::1' is not valid, expected ")
    assert len(failed.stderr.splitlines()) == 1
    appvm.check()


def test_plan_with_an_invalid_value() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip": "here; rm -rf /\n\x1b[31m"})
    failed = appvm.qube.guestnet("plan", check=False)
    assert failed.returncode == 1
    assert "\x1b" not in failed.stderr
    assert "address add" not in failed.stdout


def test_what_is_called_without_the_right_to_change_says_so() -> None:
    appvm = AppVm()
    done = appvm.qube.run("unshare", "--user", *PROGRAM, "apply", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert appvm.oracle.addresses("eth0") == set()


# --- uplink --------------------------------------------------------------------------------------------------------


def test_uplink_add_waits_for_a_qubesdb_that_comes_late() -> None:
    appvm = AppVm(None)
    adding = appvm.qube.spawn("add", *PROGRAM, "uplink", "add", "eth0")
    eventually(lambda: "/usr" in adding.output() or adding.running)
    appvm.qube.start_store(ENTRIES)
    assert adding.wait(15) == 0, adding.tail()
    appvm.check()


def test_uplink_add_gives_up_on_a_qubesdb_that_never_comes() -> None:
    appvm = AppVm(None)
    sooner = "from qubes_guestnet.cli import main, reading; reading.STORE_SECONDS = 0.5; raise SystemExit(main.main())"
    failed = appvm.qube.run(sys.executable, "-c", sooner, "uplink", "add", "eth0", check=False)
    assert failed.returncode == 1
    assert "qubes-db.service running?" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


# --- status --------------------------------------------------------------------------------------------------------


def test_status_for_people() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    text = appvm.qube.guestnet("status", check=False).stdout
    for line in (
        f"eth0 ({MAC}, veth): configured, up, carrier",
        f"  addresses: {IP}/32 {IP6}/128",
        "  default route: device route (default)",
        f"/etc/resolv.conf: {DNS} {DNS2}, written by qubes-guestnet (no other program manages this file)",
        "to do: nothing",
        "agent: running, state unchanged since 20",
    ):
        assert any(found.startswith(line) for found in text.splitlines()), (line, text)


def test_status_for_programs() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    found = appvm.status()
    former = {"interfaces", "resolver", "dns", "provider", "settled", "plan", "errors", "agent", "others", "wrong"}
    assert set(found) == former | {"schema", "version", "operations", "findings"}
    assert found["provider"] is None
    (interface,) = found["interfaces"]
    assert interface["name"] == "eth0"
    assert interface["mac"] == MAC
    assert interface["index"] == appvm.oracle.link("eth0")["ifindex"]  # type: ignore[index]
    assert (interface["present"], interface["expected"], interface["configured"]) == (True, True, True)
    assert interface["desired"]["addresses"] == interface["observed"]["addresses"] == [f"{IP}/32", f"{IP6}/128"]
    assert interface["plan"] == found["plan"] == found["errors"] == interface["held"] == []
    assert found["settled"] is True
    assert found["dns"] == found["resolver"]["servers"] == [DNS, DNS2]
    assert (found["resolver"]["owner"], found["resolver"]["pending"]) == ("direct", False)
    assert found["agent"]["running"] is True
    assert found["agent"]["error"] == ""


@pytest.mark.behaviour("B141")
def test_status_changes_nothing_and_its_exit_status_says_that_something_is_wrong() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip6": "rubbish"})
    done = appvm.qube.guestnet("status", check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "there are problems: `qubes-guestnet check` lists them with their remedies"
    assert json.loads(appvm.qube.guestnet("status", "--json", check=False).stdout)["wrong"] is True
    assert "eth0 (00:16:3e:5e:6c:05, veth): NOT configured, down, no carrier" in done.stdout
    assert "  IPv6: settings invalid, its configuration stays" in done.stdout
    assert "error: /qubes-ip6: 'rubbish' is not valid" in done.stdout
    assert "agent: not running" in done.stdout
    assert not appvm.oracle.is_up("eth0")
    assert not appvm.qube.path("/run/qubes-guestnet").exists()


@pytest.mark.behaviour("B141")
def test_the_exit_status_of_status_follows_what_is_there() -> None:
    appvm = AppVm()
    assert appvm.qube.guestnet("status", check=False).returncode == 1  # nothing is configured
    appvm.qube.guestnet("rules", "load")
    appvm.qube.guestnet("apply")
    for words in ("status", "status eth0", "status --json"):
        assert appvm.qube.guestnet(*words.split(), check=False).returncode == 0, words
    for change, back in (
        (("ip", "route", "del", "default"), ("apply",)),
        (("ip", "link", "set", "eth0", "down"), ("apply",)),
        (("nft", "delete", "table", "ip", "qubes"), ("rules", "load")),
    ):
        appvm.qube.run(*change)
        assert appvm.qube.guestnet("status", check=False).returncode == 1, change
        appvm.qube.guestnet(*back)
        assert appvm.qube.guestnet("status", check=False).returncode == 0, back
    appvm.unplug()
    assert appvm.qube.guestnet("status", check=False).returncode == 1  # promised, and not there


def test_status_of_an_ordinary_user() -> None:
    appvm = AppVm()
    appvm.agent()
    done = appvm.qube.run("unshare", "--user", *PROGRAM, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "configured, up, carrier" in done.stdout
    if os.path.exists("/usr/bin/setpriv") and Path("/proc/self/uid_map").read_text().split()[2] != "1":
        command = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *PROGRAM, "status", "--json")
        done = appvm.qube.run(*command, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["status", "status --json", "plan", "--help"])
@pytest.mark.parametrize("where", ["closed-pipe", "full-disk"])
def test_output_that_nobody_takes(words: str, where: str) -> None:
    appvm = AppVm()
    reader, writer = os.pipe()
    os.close(reader)
    if where == "full-disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer)
    command = ["nsenter", "-t", str(appvm.qube.pid), "-n", "-m", "-p", *PROGRAM, *words.split()]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=30, check=False
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert done.returncode == 1 or words == "--help"
