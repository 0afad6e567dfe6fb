# SPDX-License-Identifier: GPL-2.0-or-later
"""`socket` without its enumerations: numbers in place of them, and everything else as there.

The original imports `enum` and `selectors` and converts each constant of the kernel: 11 ms of processor time where a
bare interpreter takes 10 (`python3 -I -S -X importtime -c "import socket"`), in each command that the boot or a
starting qube waits for. `_socket`, which it is made of, is not documented; all that is used of it are names that
`socket` re-exports. Type checkers see the original.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import *  # noqa: F403
else:
    import _socket
    from _socket import *  # noqa: F403

    class socket(_socket.socket):
        """A socket that closes at the end of a `with` block."""

        __slots__ = ()

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            self.close()

        def accept(self):
            """Return a new connection, which blocks, and the address of the other end."""
            fd, address = self._accept()
            return socket(fileno=fd), address
