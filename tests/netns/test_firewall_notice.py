# SPDX-License-Identifier: GPL-2.0-or-later
"""The desktop's user is told of a list with an error; whatever becomes of that, the rules are in force."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually, never
from tests.support.faults.adapter_errors import NOTICE
from tests.support.faults.thrown import armed, throw, thrown
from tests.support.qubes.firewall import BLOCKED, Enforcing

TOOLS = "/run/lab/tools"
ENVIRONMENT = {"PATH": f"{TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin"}
RUNUSER = (
    '#!/bin/sh\nfor word; do echo "$word"; done >>/run/lab/shown\necho $DBUS_SESSION_BUS_ADDRESS >>/run/lab/shown\n'
)
BAD = "action=accept foo=<b>"


def desktop(host: Enforcing, *, bus: bool = True) -> None:
    """A logged-in user, and the two programs."""
    host.write("/default-user", "root")
    for name, text in (("runuser", RUNUSER), ("notify-send", "#!/bin/sh\n")):
        host.qube.write(f"{TOOLS}/{name}", text)
        host.qube.path(f"{TOOLS}/{name}").chmod(0o755)
    host.qube.run("mkdir", "-p", "/run/user/0")
    if bus:
        code = 'import socket; socket.socket(socket.AF_UNIX).bind("/run/user/0/bus")'
        host.qube.run("python3", "-c", code)


def shown(host: Enforcing) -> list[str]:
    return host.qube.run("sh", "-c", "cat /run/lab/shown 2>/dev/null || :").stdout.splitlines()


@pytest.mark.behaviour("B87")
def test_a_bad_list_is_shown_to_the_desktop_s_user_once_a_minute() -> None:
    host = Enforcing(agent=False)
    desktop(host)
    host.qube.start_agent(env=ENVIRONMENT)
    behind = host.attach()
    host.applied(behind.ip, BAD)
    eventually(lambda: len(shown(host)) == 9, trouble=host.trouble)
    assert shown(host)[:3] == ["-u", "root", "--"]
    assert f"Firewall rules of {behind.ip} have an error" in shown(host)
    assert "&lt;b>" in shown(host)[-2]
    assert shown(host)[-1] == "unix:path=/run/user/0/bus"
    host.applied(behind.ip, BAD, "action=accept")
    never(lambda: len(shown(host)) > 9, 0.5)


@pytest.mark.behaviour("B87")
def test_without_a_desktop_nothing_is_shown_and_rules_are_in_force() -> None:
    host = Enforcing(agent=False)
    desktop(host, bus=False)
    host.qube.start_agent(env=ENVIRONMENT)
    behind = host.attach()
    host.applied(behind.ip, BAD)
    assert host.chain(behind.ip) == [BLOCKED]
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)
    assert shown(host) == []


@pytest.mark.behaviour("B87")
@pytest.mark.behaviour("B146")
@pytest.mark.parametrize(("place", "error"), NOTICE)
def test_a_notification_that_cannot_be_shown_is_told_and_stops_nothing(place: str, error: str) -> None:
    host = Enforcing(agent=False)
    desktop(host)
    host.qube.start_agent(env={**armed(host.qube, place, error), **ENVIRONMENT})
    behind = host.attach()
    throw(host.qube)
    host.applied(behind.ip, BAD)
    assert thrown(host.qube, 10), host.trouble()
    eventually(lambda: "firewall: no notification: " in host.trouble())
    host.applied(behind.ip, "action=accept")
    assert host.passes(behind)
