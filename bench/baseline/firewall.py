# SPDX-License-Identifier: GPL-2.0-or-later
"""What today's daemon does with firewall lists, as plainly as it can be done: the yardstick of bench/firewall.

For each qube one process of nft that makes and empties its chain, a second one that fills it, and one of conntrack that
lists what the qube has open; then its commit is counted. All lists at the start, and then each by its commit. It checks
nothing, verifies nothing, knows only the entries of the benchmark, and looks up no name.
"""

from __future__ import annotations

import select
import subprocess
import sys

from qubes_guestnet.system.qubesdb import store as qubesdb

# In a user namespace, where the benchmark runs, nft 1.0.6 cannot load more at once; today's daemon is root and can.
PIECE = 250
FOLDER, HANDLED = "/qubes-firewall/", "/qubes-firewall-handled/"
_TABLE = """
add table ip qubes-firewall
add map ip qubes-firewall qubes { type ipv4_addr : verdict; }
add chain ip qubes-firewall forward { type filter hook forward priority 0; policy drop; }
flush chain ip qubes-firewall forward
add rule ip qubes-firewall forward ct state established,related accept
add rule ip qubes-firewall forward iifgroup != 2 accept
add rule ip qubes-firewall forward ip saddr vmap @qubes
"""


def nft(text: str) -> None:
    """Load one transaction."""
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


def rule(entry: str) -> str:
    """One entry in nft's language."""
    words = dict(word.split("=") for word in entry.split())
    text = f"ip daddr {words['dst4']} " if "dst4" in words else ""
    if "dstports" in words:
        text += f"{words['proto']} dport {words['dstports']} "
    return text + words["action"]


def handle(store: qubesdb.Store, address: str) -> None:
    """Put the list of a qube in force."""
    entries = store.multiread(f"{FOLDER}{address}/")
    policy = entries.pop(f"{FOLDER}{address}/policy", b"drop").decode()
    rules = [rule(entries[path].decode()) for path in sorted(entries)]
    chain = f"ip qubes-firewall qbs-{address.replace('.', '-')}"
    nft(f"add chain {chain}\nflush chain {chain}\n")
    lines = [f"add rule {chain} {each}\n" for each in (*rules, policy)]
    lines.append(f"add element ip qubes-firewall qubes {{ {address} : goto {chain.split()[-1]} }}\n")
    for begin in range(0, len(lines), PIECE):
        nft("".join(lines[begin : begin + PIECE]))
    subprocess.run(["conntrack", "-L", "-s", address], check=True, capture_output=True)
    counted = int(store.read(f"{HANDLED}{address}") or b"0")
    store.write(f"{HANDLED}{address}", str(counted + 1).encode())


def main(directory: str) -> None:
    """Serve for ever."""
    watches = qubesdb.connect_watches((FOLDER,), directory=directory)
    store = qubesdb.connect(writable=True, directory=directory)
    nft(_TABLE)
    for path in store.list(FOLDER):
        if path.endswith("/policy"):
            handle(store, path.split("/")[2])
    watches.drain()
    while True:
        select.select([watches], [], [])
        watches.drain()
        for path in watches.paths:
            if path.count("/") == 2:
                handle(store, path.split("/")[2])


if __name__ == "__main__":
    main(sys.argv[1])
