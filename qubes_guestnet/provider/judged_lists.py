# SPDX-License-Identifier: GPL-2.0-or-later
"""The file in /run by which a restarted agent knows that connections were judged; see `core.firewall.judged_text`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..core.firewall import judged_text
from ..core.firewall.connections import Rules
from ..core.firewall.enforcement import Memory
from ..system import files

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.firewall.listing import Listed
    from ..core.firewall.plan import Wanted

FILE = "judged"  # in our folder below /run
_MODE = 0o600  # only root may read it: it lists the client qubes


def recalled(
    run: str,
    memory: Memory,
    wanted: Wanted,
    look: Callable[[], tuple[Mapping[int, Listed], object]],
    *,
    applies: bool,
) -> Memory:
    """Return the memory with the lists that a former agent has judged connections by.

    Args:
        run: our folder below /run.
        memory: of this pass; that of an agent which has judged something itself is left as it is.
        wanted: what is to be in force.
        look: returns what is, before anything of this pass, and since when.
        applies: the pass loads lists. The others are then taken out of the file first: killed before it judges, this
            agent would leave there a list that is wanted and loaded, but judged before another one was loaded.

    Raises:
        FileError: the file is there and cannot be read, or it cannot be written. GuestnetError of `look`.
    """
    if memory.judged.lists or not wanted.lists:
        return memory
    judged = judged_text.parse(files.read(os.path.join(run, FILE), judged_text.LONGEST))
    same = judged_text.restored(judged, wanted.lists, look()[0])
    if applies:
        _keep(run, same)
    return memory._replace(judged=same)


def kept(run: str, memory: Memory) -> Memory:
    """Write down the lists by which connections were judged, and return the memory. Raises FileError."""
    _keep(run, memory.judged)
    return memory


def _keep(run: str, judged: Rules) -> None:
    """Write down the lists by which connections were judged, where they differ. Raises FileError."""
    files.publish(os.path.join(run, FILE), judged_text.render(judged), _MODE, sync=False)
