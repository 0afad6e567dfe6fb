# SPDX-License-Identifier: GPL-2.0-or-later
"""Units and programs that a test puts into a machine."""

from __future__ import annotations

from tests.support.machines.kinds import FORWARDING

# What is in force when network-pre.target is reached, seen by a unit that waits for nothing else.
WITNESS = f"""\
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=qubes-guestnet.service

[Service]
Type=oneshot
ExecStart=/bin/sh -c '{{ nft list ruleset; ip -oneline address; cat {" ".join(FORWARDING)}; }} >/run/at-network-pre'
"""
# A service that does nothing.
PROXY_UNIT = """\
[Service]
ExecStart=/bin/sleep infinity
"""
# A name server that answers whatever it is asked with where it was asked.
ANSWERER = """\
import socket
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.bind(("10.139.1.1", 53))
print("ready", flush=True)
while True:
    data, asker = port.recvfrom(512)
    port.sendto(data + b" answered", asker)
"""
ASK = """\
import socket, sys
port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port.settimeout(2)
port.sendto(b"question", (sys.argv[1], 53))
print(port.recvfrom(512)[0].decode())
"""
