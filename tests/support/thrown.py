# SPDX-License-Identifier: GPL-2.0-or-later
"""Has one adapter of a running agent raise one error, once, in the middle of its real work."""

from __future__ import annotations

import sys

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually

_FOLDER = "/run/lab/throwing"
_ORDER, _THROWN = "/run/lab/throw", "/run/lab/thrown"
_TEXT = """
import errno, functools, importlib, os
from qubes_guestnet import errors

def arm(place, expression):
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for word in owners:
        owner = getattr(owner, word)
    real = getattr(owner, name)

    @functools.wraps(real)
    def throwing(*args, **kwargs):
        try:
            os.unlink({order!r})
        except OSError:
            return real(*args, **kwargs)
        open({thrown!r}, "w").close()
        names = {{**vars(errors), "errno": errno}}
        for each in ("programs", "nft", "xenstore", "dbus"):
            names |= vars(importlib.import_module("qubes_guestnet.system." + each))
        raise eval(expression, names)

    setattr(owner, name, throwing)

arm({place!r}, {expression!r})
"""
_KILLING = """
import functools, importlib, os, signal

def arm(place, after):
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for word in owners:
        owner = getattr(owner, word)
    real = getattr(owner, name)

    @functools.wraps(real)
    def killing(*args, **kwargs):
        try:
            os.unlink({order!r})
        except OSError:
            return real(*args, **kwargs)
        if after:
            real(*args, **kwargs)
        open({thrown!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)

arm({place!r}, {after!r})
"""


def armed(qube: Qube, place: str, expression: str) -> dict[str, str]:
    """An environment for the agent, in which what is at a place raises an error when `throw` asks for it.

    Args:
        qube: of the agent.
        place: `module:function` or `module:Class.method`.
        expression: the error, with the names of `errors`, `errno` and the adapters.
    """
    text = _TEXT.format(order=_ORDER, thrown=_THROWN, place=place, expression=expression)
    qube.write(f"{_FOLDER}/sitecustomize.py", text)
    return {"PYTHONPATH": ":".join((_FOLDER, *sys.path))}


def killing(qube: Qube, place: str, *, after: bool) -> dict[str, str]:
    """An environment for the agent, in which it is killed at a place when `throw` asks for it.

    Args:
        qube: of the agent.
        place: as for `armed`.
        after: what is there has been done by then; else it is about to be.
    """
    text = _KILLING.format(order=_ORDER, thrown=_THROWN, place=place, after=after)
    qube.write(f"{_FOLDER}/sitecustomize.py", text)
    return {"PYTHONPATH": ":".join((_FOLDER, *sys.path))}


def throw(qube: Qube) -> None:
    """The next use raises the error, or kills."""
    qube.write(_ORDER, "")


def thrown(qube: Qube, seconds: float) -> bool:
    """Whether it was raised."""
    path = qube.path(_THROWN)
    try:
        return bool(eventually(path.exists, seconds))
    except AssertionError:
        return False
