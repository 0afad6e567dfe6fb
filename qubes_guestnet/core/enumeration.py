# SPDX-License-Identifier: GPL-2.0-or-later
"""`enum.Enum` without its cost: 1 ms for the module, and 0.2 for each class, of 30 that the imports of `apply` take.

Type checkers see the original.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum
else:

    class _Type(type):
        def __new__(cls, name, bases, namespace):
            values = {key: namespace.pop(key) for key in tuple(namespace) if not key.startswith("_")}
            made = super().__new__(cls, name, bases, {"__slots__": (), **namespace})
            made._members = tuple(made._member(key, value) for key, value in values.items())
            for member in made._members:
                type.__setattr__(made, member.name, member)
            return made

        def __call__(cls, value):
            """Return the member of this value; ValueError for any other."""
            for member in cls._members:
                if member.value == value:
                    return member
            raise ValueError(f"{value!r} is not a valid {cls.__name__}")

        def __iter__(cls):
            return iter(cls._members)

        def __contains__(cls, value):
            return value in cls._members

        def __len__(cls):
            return len(cls._members)

    class Enum(metaclass=_Type):
        """Base of a class whose public names are its only values; each is equal to itself alone."""

        __slots__ = ("name", "value")

        @classmethod
        def _member(cls, name, value):
            member = object.__new__(cls)
            object.__setattr__(member, "name", name)
            object.__setattr__(member, "value", value)
            return member

        def __setattr__(self, key, value):
            raise AttributeError(f"{self!r} is constant")

        def __repr__(self):
            return f"{type(self).__name__}.{self.name}"


__all__ = ["Enum"]
