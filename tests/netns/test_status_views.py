# SPDX-License-Identifier: GPL-2.0-or-later
"""`status` for people and for programs: colour, brief, watched, and the real output of several states by its schema."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.netns.test_provider_status import Provider
from tests.support.eventually import eventually
from tests.support.qubes.appvm import DNS, ENTRIES, ENTRIES6, GATEWAY, IP, IP6, MAC, AppVm

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads((DOCS / "status.schema.json").read_text(encoding="utf-8"))
PROGRAM = (sys.executable, "-m", "qubes_guestnet")
VALID = jsonschema.Draft202012Validator(SCHEMA)


def array_of(name: str) -> jsonschema.Draft202012Validator:
    """For an array of one of the schema's definitions, as `plan --json` and `check --json` print."""
    return jsonschema.Draft202012Validator(
        {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "$defs": SCHEMA["$defs"]}
    )


def valid(qube: Any) -> Any:
    """What `status --json` prints, held against the schema; `plan` and `check` too."""
    for verb, name in (("plan", "operation"), ("check", "finding")):
        array_of(name).validate(json.loads(qube.guestnet(verb, "-j", check=False).stdout))
    data = json.loads(qube.guestnet("status", "-j", check=False).stdout)
    VALID.validate(data)
    return data


# --- for programs ----------------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_refuses_what_it_does_not_know() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = valid(AppVm().qube)
    for wrong in ({**data, "more": 1}, {key: data[key] for key in data if key != "plan"}, {**data, "schema": 2}):
        with pytest.raises(jsonschema.ValidationError):
            VALID.validate(wrong)


def described(schema: Any) -> list[str]:
    """Keys of a schema, and of what is below it, without a description of their own or of what they refer to."""
    missing = []
    for key, value in schema.get("properties", {}).items():
        own = value if "$ref" not in value else SCHEMA["$defs"][value["$ref"].rpartition("/")[2]]
        missing += [] if {"description", "properties", "items"} & set(own) else [key]
    for below in (*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")):
        missing += described(below) if isinstance(below, dict) else []
    return missing


def test_every_key_is_described() -> None:
    assert [described(schema) for schema in (SCHEMA, *SCHEMA["$defs"].values())] == [[]] * (len(SCHEMA["$defs"]) + 1)


def test_a_fresh_qube_and_then_a_configured_one() -> None:
    appvm = AppVm(ENTRIES6)
    (fresh,) = valid(appvm.qube)["interfaces"]
    (address, address6) = fresh["addresses"]
    assert address == {"family": 4, "address": IP, "prefix": 32, "desired": True, "present": False}
    assert (address6["address"], address6["present"]) == (IP6, False)
    assert fresh["traffic"]["sent"]["packets"] == 0
    appvm.agent()
    data = valid(appvm.qube)
    (interface,) = data["interfaces"]
    assert all(each["present"] and each["desired"] for each in interface["addresses"])
    (default,) = (route for route in interface["routes"] if route["destination"] == "0.0.0.0/0")
    expected = {"family": 4, "destination": "0.0.0.0/0", "gateway": None, "onlink": False, "metric": 0, "protocol": 81}
    assert default == {**expected, "desired": True, "present": True}
    assert {"family": 4, "address": GATEWAY, "mac": "fe:ff:ff:ff:ff:ff", "permanent": True, "desired": True,
            "present": True} in interface["neighbours"]  # fmt: skip
    assert data["operations"] == []
    assert data["resolver"]["wanted"] == data["resolver"]["servers"]
    appvm.oracle.run("ip", "address", "add", "192.0.2.9/24", "dev", "eth0")
    (interface,) = valid(appvm.qube)["interfaces"]
    assert [each["desired"] for each in interface["addresses"] if each["address"] == "192.0.2.9"] == [False]


def test_errors_have_a_code() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip6": "rubbish"})
    data = valid(appvm.qube)
    (error,) = (each for each in data["findings"] if each["code"] == "settings-invalid")
    assert error["severity"] == "error"
    assert data["errors"] == [f"{error['problem']}; {error['remedy']}"]
    assert {each["operation"] for each in data["operations"]} == set(data["plan"])


@pytest.mark.parametrize("entries", [{}, {"/qubes-mac": "x"}, ENTRIES], ids=["none", "bad mac", "no interface"])
def test_states_without_an_interface(entries: dict[str, str]) -> None:
    valid(AppVm(entries, plugged=False).qube)


def test_detached_taken_down_and_a_file_of_others() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("apply")
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert valid(appvm.qube)["interfaces"][0]["removed"] is True
    appvm.unplug()
    appvm.qube.guestnet("apply")
    assert valid(appvm.qube)["interfaces"][0]["traffic"] is None


def test_a_provider_with_vifs_and_without_rules() -> None:
    provider = Provider()
    provider.attach()
    data = valid(provider.qube)["provider"]
    (vif,) = data["vifs"]
    assert set(vif["traffic"]) == {"received", "sent"}
    assert data["dns"]["redirected"][0] == {"virtual": "10.139.1.1", "server": "192.168.0.1"}
    far = "ip link add far5 type dummy; ip link set dev far4.0 address 00:16:3e:5e:6c:05"
    provider.qube.run("sh", "-c", far)
    provider.stop_agent()
    provider.nft("flush ruleset")
    provider.plug("vif5.0")
    broken = valid(provider.qube)
    assert {each["reason"] for each in broken["operations"]} != {""}
    assert broken["wrong"] is True
    provider.qube.guestnet("forwarding", "off")
    assert valid(provider.qube)["provider"]["closed"] is True


# --- for people ------------------------------------------------------------------------------------------------------


def test_colour_is_for_a_terminal_or_for_who_asks() -> None:
    appvm = AppVm()
    plain = appvm.qube.guestnet("status", check=False).stdout
    assert "\x1b" not in plain
    for verb in ("status", "plan", "check"):
        coloured = appvm.qube.guestnet(verb, "--color=always", check=False).stdout
        assert "\x1b[" in coloured, verb
        without = appvm.qube.guestnet(verb, "--color", "never", check=False).stdout
        assert "\x1b" not in without, verb
    assert on_a_terminal(appvm, {"TERM": "xterm"}, "status").count("\x1b[1m") >= 2
    assert "\x1b" not in on_a_terminal(appvm, {"TERM": "xterm", "NO_COLOR": "1"}, "status")
    assert "\x1b" not in on_a_terminal(appvm, {"TERM": "dumb"}, "status")
    failed = appvm.qube.guestnet("status", "--color=sometimes", check=False)
    assert (failed.returncode, failed.stdout) == (2, "")


def on_a_terminal(appvm: AppVm, environment: dict[str, str], *words: str) -> str:
    """What it prints where standard output is a terminal."""
    code = f"import pty, sys; sys.exit(pty.spawn({[*PROGRAM, *words]!r}) >> 8)"
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    done = appvm.qube.run(
        sys.executable, "-c", code, check=False, env={**kept, "PYTHONPATH": os.getcwd(), **environment}
    )
    return done.stdout


def test_brief_is_a_line_an_interface() -> None:
    appvm = AppVm(ENTRIES6)
    (line,) = appvm.qube.guestnet("status", "-b", check=False).stdout.splitlines()
    assert line.split() == ["eth0", "NOT", "configured"]
    appvm.qube.guestnet("apply")
    (line,) = appvm.qube.guestnet("status", "--brief", check=False).stdout.splitlines()
    assert line.split() == ["eth0", "configured", f"{IP}/32", f"{IP6}/128"]
    appvm.unplug()
    (line,) = appvm.qube.guestnet("status", "--brief", check=False).stdout.splitlines()
    assert line.split()[0] == MAC
    provider = Provider()
    provider.attach()
    assert [line.split() for line in provider.lines("status", "-b")] == [["vif4.0", "configured", "10.137.0.5"]]
    failed = appvm.qube.guestnet("status", "-b", "-j", check=False)
    assert failed.returncode == 2
    assert "give one of them" in failed.stderr


def test_watched_it_prints_again_what_changes() -> None:
    appvm = AppVm()
    watching = appvm.qube.spawn("watch", *PROGRAM, "status", "--brief", "--watch")
    eventually(lambda: "NOT configured" in watching.output())
    appvm.qube.guestnet("apply")
    eventually(lambda: f" configured {IP}/32" in " ".join(watching.output().split()), trouble=watching.output)
    assert "\x1b" not in watching.output()
    os.kill(watching.pid, signal.SIGINT)
    assert watching.wait(10) == 0, watching.tail()
    assert len(watching.output().splitlines()) == 2


def test_watched_as_json_it_is_a_document_a_line() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("apply")
    watching = appvm.qube.spawn("watch", *PROGRAM, "status", "-j", "-w")
    eventually(lambda: watching.output().count("\n") == 1)
    appvm.write("/qubes-primary-dns", "10.139.1.9")
    eventually(lambda: watching.output().count("\n") > 1, trouble=watching.output)
    os.kill(watching.pid, signal.SIGINT)
    assert watching.wait(10) == 0, watching.tail()
    first, *_, last = map(json.loads, watching.output().splitlines())
    VALID.validate(first)
    VALID.validate(last)
    assert (first["dns"][0], last["dns"][0]) == (DNS, "10.139.1.9")
