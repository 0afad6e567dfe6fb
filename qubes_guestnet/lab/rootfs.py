# SPDX-License-Identifier: GPL-2.0-or-later
"""The file system a qube sees: the host's programs read-only, and its own /etc, /run, /rw, /tmp, /proc and /sys.

So the agent runs unmodified, with the real paths. The root is a tmpfs of the qube's own mount namespace, because an
unprivileged user cannot make /rw on the host. /etc is a folder of links into the host's /etc, except for what belongs
to the qube alone; an overlay would do the same, but cannot be had in every container.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from .namespaces import MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, bind, is_below, mount, needed_paths, pivot

# Not shown from the host: made anew for each qube.
_OWN = frozenset(("etc", "run", "rw", "sys", "proc", "tmp", "lost+found"))
_HOST_ETC = ".host-etc"
# Not linked from the host's /etc: the qube's own, or what would make the outcome depend on the host.
_OWN_ETC = frozenset(("resolv.conf", "qubes", "hosts", "hostname", "nsswitch.conf", "gai.conf", "mtab"))
_FOLDERS = (
    "run/qubes", "run/qubes-service", "run/lock", "run/lab", "rw/config", "etc/qubes/protected-files.d",
)  # fmt: skip


def build(root: str, name: str, hidden: str) -> None:
    """Build the root of qube `name` at the empty folder `root` and enter it. For a process that has just unshared.

    Args:
        root: folder of the lab's work folder.
        name: host name of the qube.
        hidden: the lab's work folder, not shown to the qube.
    """
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("qube", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")
    _host_folders(root, hidden)
    os.makedirs(f"{root}/{_HOST_ETC}")
    bind("/etc", f"{root}/{_HOST_ETC}")
    for folder in ("etc", "run", "rw", "sys", "proc", "tmp", *_FOLDERS):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    os.chmod(f"{root}/tmp", 0o1777)
    _etc(f"{root}/etc", name)
    _show_needed(root, needed_paths())
    _show_measured(root)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV)
    pivot(root)


def _host_folders(root: str, hidden: str) -> None:
    for entry in os.scandir("/"):
        if entry.name in _OWN or is_below(hidden, entry.path):
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{root}/{entry.name}")
        elif entry.is_dir():
            os.mkdir(f"{root}/{entry.name}")
            bind(entry.path, f"{root}/{entry.name}")


def _etc(folder: str, name: str) -> None:
    for entry in os.scandir("/etc"):
        if entry.name not in _OWN_ETC:
            os.symlink(f"/{_HOST_ETC}/{entry.name}", f"{folder}/{entry.name}")
    own: Mapping[str, str] = {
        "hostname": f"{name}\n",
        "hosts": f"127.0.0.1 localhost {name}\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "resolv.conf": "",
    }
    for file_name, text in own.items():
        with open(f"{folder}/{file_name}", "w", encoding="ascii") as file:
            file.write(text)


def _show_needed(root: str, paths: Iterable[str]) -> None:
    """Python or the project may live in /tmp or /run, which are the qube's own: show just those folders there.

    An environment comes before what is in it: the other way round, only the inner folder was shown, and no interpreter.
    """
    shown: list[str] = []
    for path in sorted(paths, key=lambda path: path.count("/")):
        if path.split("/")[1] in _OWN - {"lost+found"} and not any(is_below(path, folder) for folder in shown):
            os.makedirs(f"{root}{path}", exist_ok=True)
            bind(path, f"{root}{path}")
            shown.append(path)


def _show_measured(root: str) -> None:
    """Where `make coverage` has every process leave its file: writable, below a folder that is not."""
    folder = os.path.dirname(os.environ.get("COVERAGE_FILE", ""))
    if folder and os.path.isdir(root + folder):
        mount(folder, root + folder, flags=MS_BIND)
