# SPDX-License-Identifier: GPL-2.0-or-later
"""`typing.NamedTuple` without its cost.

The original compiles every annotation that is a string (and ours all are, by `from __future__ import annotations`) into
an unused ForwardRef: 0.25 MB and 3 ms for this program. Type checkers see the original.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple, TypeVar

    Made = TypeVar("Made")
else:
    import collections

    class _Maker(type):
        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = namespace.pop("__annotations__", {})
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            made = collections.namedtuple(name, fields, defaults=defaults, module=namespace.pop("__module__"))
            made.__annotations__ = fields
            for key, value in namespace.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """Base of a tuple with named fields, declared by annotations."""


def distinct(cls: type[Made]) -> type[Made]:
    """Make values of a class equal only to values of the same class, not to every tuple with equal fields."""

    same = tuple.__eq__

    def eq(self: tuple[object, ...], other: object) -> bool:
        return type(self) is type(other) and same(self, other)

    def ne(self: tuple[object, ...], other: object) -> bool:
        return not eq(self, other)

    for name, method in (("__eq__", eq), ("__ne__", ne), ("__hash__", tuple.__hash__)):
        setattr(cls, name, method)
    return cls


__all__ = ["NamedTuple", "distinct"]
