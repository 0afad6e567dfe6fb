# SPDX-License-Identifier: GPL-2.0-or-later
"""What else follows the name servers: the callers of `dns sync`, and core-agent's firewall."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.provider import REAL_NFT, ROUTER, Provider

SECOND, THIRD = "198.51.100.52", "198.51.100.53"
RELOAD = "--no-block reload qubes-firewall.service"
SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/lab/asked
case $1 in show) [ ! -e /run/lab/active ] || echo ActiveState=active ;; *) [ ! -e /run/lab/broken ] ;; esac
"""

# nft, and a VPN's client that names another server while a redirection to the one before is loaded.
RACING_NFT = f"""#!/bin/sh
case "$*" in
*-f*)
    cat >/run/lab/text
    {REAL_NFT} "$@" </run/lab/text || exit
    grep -q 'dnat to {SECOND}' /run/lab/text || exit 0
    echo 'nameserver {THIRD}' >/etc/resolv.conf.new
    exec mv /etc/resolv.conf.new /etc/resolv.conf ;;
*) exec {REAL_NFT} "$@" ;;
esac
"""


def leads(host: Provider, server: str) -> None:
    eventually(lambda: server in " ".join(host.rules("ip", "dnat-dns")), trouble=host.trouble)


def sync(host: Provider) -> int:
    return int(host.qube.guestnet("dns", "sync", check=False).returncode)


@pytest.mark.behaviour("B135")
def test_a_change_that_the_agent_followed_is_a_change_for_who_asks() -> None:
    host = Provider()
    leads(host, ROUTER)
    assert [sync(host) for _ in range(3)] == [0, 100, 100]
    host.resolv_conf(SECOND)
    leads(host, SECOND)
    assert [sync(host) for _ in range(2)] == [0, 100]
    host.resolv_conf(THIRD)
    leads(host, THIRD)
    host.resolv_conf(SECOND)
    leads(host, SECOND)
    assert sync(host) == 100, "it leads where it led when this was last asked"
    host.agent.stop()
    host.resolv_conf(THIRD)
    assert [sync(host) for _ in range(2)] == [0, 100]
    host.resolv_conf()
    assert [sync(host) for _ in range(2)] == [0, 100]


@pytest.mark.behaviour("B37")
@pytest.mark.scenario("S-410")
def test_a_server_that_is_named_while_the_one_before_is_loaded_is_in_force_in_the_same_pass() -> None:
    host = Provider()
    leads(host, ROUTER)
    host.agent.stop()
    host.qube.write("/run/lab/racing", RACING_NFT)
    host.qube.path("/run/lab/racing").chmod(0o755)
    host.replace_nft("/run/lab/racing")
    host.resolv_conf(SECOND)
    assert sync(host) == 0
    assert host.qube.read("/etc/resolv.conf") == f"nameserver {THIRD}\n"
    found = " ".join(host.rules("ip", "dnat-dns"))
    assert THIRD in found, host.trouble()
    assert SECOND not in found
    assert sync(host) == 100


@pytest.mark.behaviour("B136")
def test_core_agents_firewall_is_reloaded_on_a_real_change_and_a_failed_reload_is_tried_again() -> None:
    host = Provider(agent=False)
    host.qube.write("/run/lab/systemctl", SYSTEMCTL)
    host.qube.path("/run/lab/systemctl").chmod(0o755)
    host.qube.set_flag("qubes-firewall")
    host.qube.write("/run/lab/active", "")
    host.qube.run("mkdir", "-p", "/run/systemd/system")
    host.qube.start_agent(env={"PATH": "/run/lab:/usr/sbin:/usr/bin:/sbin:/bin"})

    def reloads() -> int:
        path = host.qube.path("/run/lab/asked")
        return path.read_text().splitlines().count(RELOAD) if path.exists() else 0

    eventually(lambda: reloads() == 1, trouble=host.trouble)
    host.resolv_conf(ROUTER)  # a renewed lease
    never(lambda: reloads() > 1, 1.0)
    host.qube.write("/run/lab/broken", "")
    host.resolv_conf(SECOND)
    leads(host, SECOND)
    eventually(lambda: reloads() >= 3, trouble=host.trouble)
    host.qube.path("/run/lab/broken").unlink()
    eventually(lambda: "all errors cleared" in host.trouble(), trouble=host.trouble)
    before = reloads()
    host.qube.path("/run/lab/active").unlink()  # it is stopped: it reads them when it starts
    host.resolv_conf(THIRD)
    leads(host, THIRD)
    never(lambda: reloads() > before, 1.0)
