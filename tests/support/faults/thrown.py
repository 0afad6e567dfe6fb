# SPDX-License-Identifier: GPL-2.0-or-later
"""Has one adapter of a running agent raise one error, once, in the middle of its real work."""

from __future__ import annotations

import sys

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually

_FOLDER = "/run/lab/throwing"
_ORDER, _THROWN = "/run/lab/throw", "/run/lab/thrown"
# What is at a place does `act` instead, once: as soon as the order is there, which it takes away.
_TEXT = """
import errno, functools, importlib, os, signal
from qubes_guestnet import errors

def arm(place, act):
    place, _, below = place.partition(" ")
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for word in owners:
        owner = getattr(owner, word)
    real = getattr(owner, name)

    @functools.wraps(real)
    def once(*args, **kwargs):
        if below and not any(isinstance(arg, str) and arg.startswith(below) for arg in args):
            return real(*args, **kwargs)
        try:
            os.unlink({order!r})
        except OSError:
            return real(*args, **kwargs)
        return act(lambda: real(*args, **kwargs), lambda: open({thrown!r}, "w").close())

    setattr(owner, name, once)

def throw(expression, _real, note):
    note()
    names = {{**vars(errors), "errno": errno}}
    for each in ("programs", "nft.program", "xenstore", "dbus.bus"):
        names |= vars(importlib.import_module("qubes_guestnet.system." + each))
    raise eval(expression, names)

def die(after, real, note):
    if after:
        real()
    note()
    os.kill(os.getpid(), signal.SIGKILL)

arm({place!r}, functools.partial({act}, {argument!r}))
"""


def armed(qube: Qube, place: str, expression: str) -> dict[str, str]:
    """An environment for the agent, in which what is at a place raises an error when `throw` asks for it.

    Args:
        qube: of the agent.
        place: `module:function` or `module:Class.method`; with a path behind it, only calls with an argument below it.
        expression: the error, with the names of `errors`, `errno` and the adapters.
    """
    return _environment(qube, place, "throw", expression)


def killing(qube: Qube, place: str, *, after: bool) -> dict[str, str]:
    """An environment for the agent, in which it is killed at a place when `throw` asks for it.

    Args:
        qube: of the agent.
        place: as for `armed`.
        after: what is there has been done by then; else it is about to be.
    """
    return _environment(qube, place, "die", after)


def _environment(qube: Qube, place: str, act: str, argument: object) -> dict[str, str]:
    text = _TEXT.format(order=_ORDER, thrown=_THROWN, place=place, act=act, argument=argument)
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
