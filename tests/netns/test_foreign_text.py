# SPDX-License-Identifier: GPL-2.0-or-later
"""Text and files of others that are hostile: shown escaped (B120), refused with one error (B122)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, Provider

NAMED = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff\\xfe\\x1b[31m', 0, 0, 0)\ntime.sleep(99)"
CONFIG = "/etc/qubes/guestnet.toml"


def output(host: Provider, *verb: str) -> subprocess.CompletedProcess[bytes]:
    command = host.qube._command([sys.executable, "-m", "qubes_guestnet", *verb])
    return subprocess.run(command, env=host.qube._environment(None), capture_output=True, timeout=60, check=False)


@pytest.mark.behaviour("B120")
def test_a_process_with_a_hostile_name_harms_no_verb() -> None:
    host = Provider(ENTRIES6)
    host.qube.spawn("evil", sys.executable, "-c", NAMED)
    eventually(lambda: any(b"\xff\xfe" in name for name in names(host)))
    for verb in (("status",), ("status", "--json"), ("check",), ("check", "--json"), ("plan",), ("apply",)):
        done = output(host, *verb)
        assert b"Traceback" not in done.stderr, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
        (done.stdout + done.stderr).decode("utf-8")
        if "--json" in verb:
            json.loads(done.stdout)
    host.attach(4)


def names(host: Provider) -> list[bytes]:
    found = []
    for pid in os.listdir("/proc"):
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                found.append(file.read())
        except OSError:
            continue
    return found


@pytest.mark.behaviour("B122")
@pytest.mark.parametrize("kind", ["deep", "huge", "bytes", "folder", "fifo", "escapes"])
def test_a_hostile_guestnet_toml_is_one_error(kind: str) -> None:
    host = Provider(ENTRIES6)
    path = host.qube.path(CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        data = {
            "deep": b"a = " + b"[" * 5000,
            "huge": b"#" * 10_000_000,
            "bytes": b"[uplink]\ndefault-route = '\xff\xfe'\n",
            "escapes": b"[uplink]\ndefault-route = 'x\x1b[31m'\n",
        }[kind]
        path.write_bytes(data)
    for verb in (("plan",), ("apply",), ("check",), ("status",)):
        done = output(host, *verb)
        assert b"Traceback" not in done.stderr, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
        assert verb in (("status",),) or CONFIG.encode() in done.stdout + done.stderr, done
    host.attach(4)
    assert host.agent.running


ESC = "\x1b[31m"
# What is set up, what is asked then, and the escaped form that is to be in the answer.
SHOWN = {
    "an interface asked for": (
        f"ip link add name 'x{ESC}' type veth peer name other",
        (("uplink", "add", f"x{ESC}"), ("apply", f"x{ESC}"), ("status", f"x{ESC}")),
    ),
    "an interface that leads": (
        f"ip link add name 'x{ESC}' type veth peer name other; ip link set 'x{ESC}' up;"
        f"ip route replace default dev 'x{ESC}'",
        (("check",), ("check", "--json"), ("status",), ("status", "--json")),
    ),
    "a comment in a user's rule": (
        f"nft 'add rule ip qubes custom-forward ip daddr 192.0.2.1 drop comment \"x{ESC}\"'",
        (("check",), ("check", "--json"), ("status",), ("plan",)),
    ),
    "a key of the lab's store": ("true", (("lab", "store", "read", f"/x{ESC}"), ("lab", "store", "list", f"/x{ESC}"))),
    "a verb of the lab": ("true", (("lab", "exec", f"x{ESC}", "y", "true"),)),
}


@pytest.mark.behaviour("B120")
@pytest.mark.parametrize(("made", "verbs"), SHOWN.values(), ids=SHOWN.keys())
def test_foreign_names_and_comments_are_escaped(made: str, verbs: tuple[tuple[str, ...], ...]) -> None:
    host = Provider(ENTRIES6)
    host.qube.run("sh", "-ec", made)
    for verb in verbs:
        done = output(host, *verb)
        assert b"Traceback" not in done.stderr, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr, (verb, done)
    assert "\x1b" not in host.trouble()


RAW_TABLE = """
from qubes_guestnet.system.netlink import wire
from qubes_guestnet.system.nft import batch

create, head, name = wire.NLM_F_ACK | batch.NLM_F_CREATE, batch.header(2), "x\\x1b[31m"  # NFPROTO_IPV4
hook = batch.nested(4, batch.number(1, 2) + batch.number(2, 0))  # forward, priority 0
chain = batch.text(1, name) + batch.text(3, name) + hook + batch.text(7, "filter")
with wire.opened(wire.NETLINK_NETFILTER) as asking:
    batch.commit(asking, [
        (batch.NFT_MSG_NEWTABLE, create, head + batch.text(1, name)),
        (batch.NFT_MSG_NEWCHAIN, create, head + chain),
    ])
"""


@pytest.mark.behaviour("B120")
def test_a_table_with_a_name_that_nft_would_refuse_is_escaped() -> None:
    """By netlink a name may hold any byte; nft prints it as it is."""
    host = Provider(ENTRIES6)
    host.qube.run(sys.executable, "-c", RAW_TABLE)
    assert "x\x1b[31m" in host.oracle.run("nft", "list", "tables").stdout
    for verb in (("check",), ("check", "--json"), ("status",), ("status", "--json"), ("plan",), ("apply",)):
        done = output(host, *verb)
        assert b"Traceback" not in done.stderr, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr, (verb, done)
    eventually(lambda: b"x\\x1b[31m" in output(host, "check").stdout + output(host, "status").stdout)
    assert "\x1b" not in host.trouble()
    host.attach(4)
