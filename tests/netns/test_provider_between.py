# SPDX-License-Identifier: GPL-2.0-or-later
"""What others do in the moments between two steps of ours (behaviour B148): to rules, and by a call of their own."""

from __future__ import annotations

import sys

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ENTRIES6, Client, Provider

# Another program changes rules right after each of the first N transactions of ours that have some words in them.
DISTURBING = """
import subprocess
from qubes_guestnet.system.nft import program as nft
begin, end, loading = nft.begin, nft.end, {{}}
left = [{times}]
def begun(text):
    started = begin(text)
    loading[id(started)] = text
    return started
def ended(started):
    text = loading.pop(id(started), "")
    end(started)
    if {words!r} in text and left[0]:
        left[0] -= 1
        subprocess.run(["nft", {rule!r}], check=True)
nft.begin, nft.end = begun, ended
"""
BASE, REDIRECTION = "chain ip qubes antispoof", "dnat to"
FOREIGN = {
    "ours, weakened": "insert rule ip qubes forward accept",
    "ours, emptied": "flush chain ip qubes antispoof",
    "others' own": "add table inet mine",
}


def disturbed(host: Provider, words: str, rule: str, times: int = 1) -> dict[str, str]:
    """The environment of a program that another one disturbs."""
    host.qube.write("/run/lab/disturbed/sitecustomize.py", DISTURBING.format(times=times, words=words, rule=rule))
    return {"PYTHONPATH": ":".join(("/run/lab/disturbed", *sys.path))}


def base(host: Provider) -> list[list[str]]:
    return [host.rules("ip", chain) for chain in ("prerouting", "antispoof", "postrouting", "input", "forward")]


def forget(host: Provider) -> None:
    """Everything as at boot."""
    host.nft("flush ruleset")
    host.qube.run("rm", "-f", "/run/qubes-guestnet/owned", "/run/qubes-guestnet/users-rules")


@pytest.mark.behaviour("B148")
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_change_right_after_the_base_rules_is_not_taken_for_ours(foreign: str, times: int) -> None:
    host = Provider(ENTRIES6, agent=False)
    good = base(host)
    assert all(good)
    forget(host)
    host.qube.guestnet("rules", "load", env=disturbed(host, BASE, FOREIGN[foreign], times))
    assert base(host) == good
    host.qube.start_agent()
    eventually(host.forwards, trouble=host.trouble)
    assert base(host) == good


@pytest.mark.behaviour("B125")
@pytest.mark.behaviour("B148")
def test_a_change_between_the_parts_that_are_put_back_alone_is_not_taken_for_ours() -> None:
    host = Provider(ENTRIES6, agent=False)
    host.qube.start_agent(env=disturbed(host, BASE, FOREIGN["ours, weakened"]))
    eventually(host.forwards, trouble=host.trouble)
    good = base(host)
    host.qube.run("ip", "link", "add", "tun9", "type", "veth", "peer", "name", "tun9p")
    host.nft("add chain ip qubes vpn; add rule ip qubes vpn oif tun9 accept; add chain ip qubes mine")
    host.nft("add rule ip qubes mine counter; add rule ip qubes custom-forward ip daddr 198.51.100.9 drop")
    eventually(lambda: "198.51.100.9" in host.qube.read("/run/qubes-guestnet/users-rules"), trouble=host.trouble)
    host.qube.run("sh", "-ec", "ip link del tun9; nft flush ruleset")
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    assert "loading each part alone" in host.trouble()
    eventually(lambda: base(host) == good, trouble=host.trouble)
    assert host.rules("ip", "mine") == ["counter"]
    assert host.rules("ip", "custom-forward") == ["ip daddr 198.51.100.9 drop"]


@pytest.mark.behaviour("B148")
def test_rules_that_are_changed_all_the_time_are_told_and_not_taken_for_good() -> None:
    host = Provider(ENTRIES6, agent=False)
    good = base(host)
    forget(host)
    foreign = disturbed(host, BASE, FOREIGN["ours, weakened"], 99)
    done = host.qube.guestnet("rules", "load", env=foreign, check=False)
    assert done.returncode == 1
    assert "another program keeps changing rules" in done.stderr
    host.qube.guestnet("rules", "load")
    assert base(host) == good


@pytest.mark.behaviour("B148")
@pytest.mark.parametrize("rule", ["insert rule ip qubes dnat-dns accept", "flush chain ip qubes dnat-dns"])
def test_a_change_right_after_the_redirection_of_names_is_not_taken_for_ours(rule: str) -> None:
    host = Provider(ENTRIES)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    good = host.rules("ip", "dnat-dns")
    host.agent.stop()
    host.nft("flush chain ip qubes dnat-dns")
    host.qube.start_agent(env=disturbed(host, REDIRECTION, rule))
    eventually(lambda: host.rules("ip", "dnat-dns") == good, trouble=host.trouble, deadline_s=20.0)


@pytest.mark.behaviour("B148")
@pytest.mark.behaviour("B123")
def test_a_redirection_of_others_right_after_ours_is_judged_as_any_other() -> None:
    host = Provider(ENTRIES)
    eventually(lambda: host.rules("ip", "dnat-dns"), trouble=host.trouble)
    host.agent.stop()
    host.nft("flush chain ip qubes dnat-dns")
    theirs = "add rule ip qubes dnat-dns ip daddr { 10.139.1.1, 10.139.1.2 } dnat to 192.0.2.53"
    host.qube.start_agent(env=disturbed(host, REDIRECTION, f"flush chain ip qubes dnat-dns; {theirs}"))
    eventually(lambda: "dns-foreign" in host.qube.guestnet("check", check=False).stdout, trouble=host.trouble)
    assert "192.0.2.53" in " ".join(host.rules("ip", "dnat-dns"))


# --- a call of Xen's that is under way ------------------------------------------------------------------------------

TELL = 'echo "$1 $4" >>/run/hooked; sleep 0.5'
SLOW = """
import os, time
from qubes_guestnet.cli import vif as hotplug
hand_over = hotplug._hand_over
def late(*words):
    open("/run/lab/under-way", "w").close()
    while not os.path.exists("/run/lab/go"):
        time.sleep(0.01)
    return hand_over(*words)
hotplug._hand_over = late
"""


def under_way(host: Provider, behind: Client) -> Service:
    """Xen's call, which has found out what the vif is, and has set nothing up yet."""
    host.qube.write("/run/lab/slow/sitecustomize.py", SLOW)
    environment = {**host.environment(behind), "PYTHONPATH": ":".join(("/run/lab/slow", *sys.path))}
    called = host.qube.spawn("online", sys.executable, "-m", "qubes_guestnet", "vif", "online", env=environment)
    eventually(lambda: host.qube.path("/run/lab/under-way").exists(), trouble=called.output)
    return called


def hooked(host: Provider) -> list[str]:
    return host.qube.read("/run/hooked").splitlines()


@pytest.mark.behaviour("B148")
@pytest.mark.parametrize("first", ["the agent's own", "both at once"])
def test_hooks_run_once_when_the_agent_starts_during_a_call_of_xens(first: str) -> None:
    host = Provider(ENTRIES6, agent=False)
    host.hook(TELL)
    behind = host.plug()
    called = under_way(host, behind)
    host.qube.start_agent()
    if first == "the agent's own":
        eventually(lambda: host.node(behind, "hotplug-status") == "connected", trouble=host.trouble)
    else:
        eventually(lambda: hooked(host), trouble=host.trouble)
    host.qube.write("/run/lab/go", "")
    assert called.wait(20.0) == 0, host.trouble()
    assert host.node(behind, "hotplug-status") == "connected"
    assert sorted(hooked(host)) == sorted(f"online {address}" for address in behind.addresses)
    assert host.works(behind)


@pytest.mark.behaviour("B148")
@pytest.mark.behaviour("B59")
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])
def test_hooks_run_again_for_another_device_and_for_another_address(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    host.hook(TELL)
    behind = host.attach()
    host.online(behind)
    assert hooked(host) == [f"online {address}" for address in behind.addresses]
    host.qube.path("/run/hooked").unlink()
    behind.addresses = (*behind.addresses, "10.137.0.44")
    host.online(behind)
    assert hooked(host) == ["online 10.137.0.44"]
    host.qube.path("/run/hooked").unlink()
    host.unplug(behind)  # and its end is not told
    host.wire(behind)
    host.online(behind)
    assert hooked(host) == [f"online {address}" for address in behind.addresses]


AFTER_A_LOOK = """
import subprocess
from qubes_guestnet.system import files
publish, left = files.publish, ["once"]
def published(path, data, *words, **named):
    publish(path, data, *words, **named)
    if path.endswith("/users-rules") and b"dport 22" in data and left:
        left.clear()
        subprocess.run(["nft", {rule!r}], check=True)
files.publish = published
"""


@pytest.mark.behaviour("B140")
@pytest.mark.behaviour("B148")
@pytest.mark.parametrize("provider", [True, False], ids=["provider", "a plain qube"])
def test_a_change_right_after_the_look_is_found_with_the_next_event(provider: bool) -> None:
    host = Provider(ENTRIES6 if provider else {}, flag=provider, agent=False)
    good = base(host)
    text = AFTER_A_LOOK.format(rule="flush chain ip qubes input")
    host.qube.write("/run/lab/disturbed/sitecustomize.py", text)
    host.qube.start_agent(env={"PYTHONPATH": ":".join(("/run/lab/disturbed", *sys.path))})
    host.nft("add rule ip qubes custom-input tcp dport 22 accept")
    eventually(lambda: "dport 22" in host.qube.read("/run/qubes-guestnet/users-rules"), trouble=host.trouble)
    eventually(lambda: base(host) == good, trouble=host.trouble)
    eventually(lambda: host.rules("ip", "custom-input") == ["tcp dport 22 accept"], trouble=host.trouble)
    eventually(lambda: "nft -f: base rules" in host.trouble(), trouble=host.trouble)
