# SPDX-License-Identifier: GPL-2.0-or-later
"""A xenstore of files, and the programs xenstore-read and xenstore-write for it, in a provider of the lab.

The hotplug command of a real provider asks Xen's own programs about a vif, by their installed names and in a clean
environment. So these stand where those would: /usr/sbin of the qube is shown with them in it. A node is a file; a path
without a leading slash is the provider's own, as in Xen.
"""

from __future__ import annotations

from collections.abc import Mapping

from .qube import Qube

_NODES = "/run/lab/xenstore"
_OWN = "/local/domain/self"
_HIDDEN = "/.host-sbin"
_PATH = f"""case "$1" in /*) file="{_NODES}$1";; *) file="{_NODES}{_OWN}/$1";; esac"""
_PROGRAMS = {
    "xenstore-read": f"""#!/bin/sh
# Values one a line, in order; it ends at the first path that is not there.
while [ $# -gt 0 ]; do
    case "$1" in -*) shift; continue;; esac
    {_PATH}
    [ -f "$file" ] || {{ echo "xenstore-read: couldn't read path $1" >&2; exit 1; }}
    cat "$file"; echo; shift
done
""",
    "xenstore-write": f"""#!/bin/sh
# Pairs of a path and a value; folders above are made.
while [ $# -gt 1 ]; do
    case "$1" in -*) shift; continue;; esac
    {_PATH}
    mkdir -p "${{file%/*}}" && printf %s "$2" > "$file.$$" && mv "$file.$$" "$file" || exit 1
    shift 2
done
""",
}


def install(qube: Qube) -> None:
    """Put the programs into a qube."""
    for name, text in _PROGRAMS.items():
        qube.write(f"/run/lab/{name}", text)
    qube.run(
        "sh", "-ec", f"""
        sbin=$(readlink -f /usr/sbin)
        mkdir {_HIDDEN}
        PATH="$PATH:{_HIDDEN}"  # where /usr/sbin is /usr/bin the next commands are in it
        mount --bind "$sbin" {_HIDDEN}
        mount -t tmpfs -o mode=755 sbin "$sbin"
        ln -s {_HIDDEN}/* "$sbin"
        cd /run/lab; chmod 755 {" ".join(_PROGRAMS)}; ln -sf /run/lab/xenstore-* "$sbin"
        """,
    )  # fmt: skip


def fill(qube: Qube, folder: str, nodes: Mapping[str, str]) -> None:
    """Write nodes below a folder of the qube's own, as dom0's toolstack does."""
    for name, value in nodes.items():
        qube.write(f"{_NODES}{_OWN}/{folder}/{name}", value)


def node(qube: Qube, path: str) -> str:
    """Return one node of the qube's own, "" when it is not there."""
    return qube.read(f"{_NODES}{_OWN}/{path}")


def clear(qube: Qube, folder: str) -> None:
    """Remove a folder of the qube's own."""
    place = qube.path(f"{_NODES}{_OWN}/{folder}")
    if place.is_dir():
        for file in place.iterdir():
            file.unlink(missing_ok=True)
        place.rmdir()
