# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of a qube: enter new namespaces, build the root, then reap orphans and serve sd_notify.

It replaces systemd as far as the agent needs: it serves NOTIFY_SOCKET and stores every message with its time, so that
the lab can wait for READY=1. It imports nothing: it is a fork of the lab's own process.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import struct
import time
import traceback
from typing import NoReturn

from . import rootfs
from .namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    LabError,
    unshare,
)

NOTIFY_SOCKET = "/run/lab/notify"
NOTIFY_LOG = "/run/lab/notify.log"
_MESSAGE = 4096
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def start(name: str, root: str, hidden: str) -> int:
    """Start a qube; return the process id of its process 1 once its root stands and it listens.

    Raises:
        LabError: with what went wrong inside.
    """
    answer, say = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(answer)
        _enter(name, root, hidden, say)
    os.close(say)
    with open(answer, "rb") as answers:
        words = answers.read().decode("utf-8", "replace")
    os.waitpid(between, 0)
    pid, _, rest = words.partition("\n")
    if rest != "up\n":
        raise LabError(f"qube {name} did not start: {rest or words}", "mounting /proc and /sys must be allowed here")
    return int(pid)


def _enter(name: str, root: str, hidden: str, say: int) -> NoReturn:
    """Run between the lab and process 1: only children of the unsharing process are in the new process namespace."""
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC)
        named, name_it = os.pipe()
        first = os.fork()
        if first != 0:
            os.write(say, f"{first}\n".encode())
            os.write(name_it, b"1")
            os._exit(0)
        os.read(named, 1)
        _become(name, root, hidden)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(NOTIFY_SOCKET)
        os.write(say, b"up\n")
        _let_go_of_the_lab(keep=notify.fileno())
        _serve(notify)
    except BaseException:
        os.write(say, traceback.format_exc().encode())
    os._exit(1)


def _become(name: str, root: str, hidden: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    socket.sethostname(name)
    rootfs.build(root, name, hidden)
    _loopback_up()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _let_go_of_the_lab(keep: int) -> None:
    """Close inherited descriptors: a pipe that the lab writes to must end with the lab."""
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(notify: socket.socket) -> NoReturn:
    """Reap and log until the qube is killed."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    log = os.open(NOTIFY_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with selectors.DefaultSelector() as selector:
        selector.register(notify, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is wake:
                    wake.recv(_MESSAGE)
                    _reap()
                else:
                    message = notify.recv(_MESSAGE).replace(b"\n", b" ")
                    os.write(log, f"{time.monotonic():.6f} ".encode() + message + b"\n")


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
