# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of vifs: one small file per vif, so that an attach costs the same with 1 and with 250 of them."""

from __future__ import annotations

import os

from ..core.provider.vif import Vif, parse, render
from ..core.vif_name import parse_name
from ..errors import FileError, GuestnetError
from . import files

_RUN = "/run/qubes-guestnet"


class Folder:
    """The records, in the folder `vifs`.

    Args:
        run: our folder below /run; what is missing of it is made, 0755, when the first record is saved.

    Raises:
        FileError: from every method, when the file system refuses.
    """

    def __init__(self, run: str = _RUN) -> None:
        self._folder = os.path.join(run, "vifs")

    def load(self, name: str) -> Vif | None:
        """Return the record of a vif; None when there is none, or one that cannot be understood.

        Args:
            name: such as "vif4.0"; ValueError for what is no name of a vif.
        """
        data = files.read(self._path(name))
        found = parse(data) if data is not None else None
        return found if found is not None and found.name.text == name else None

    def has(self, name: str) -> bool:
        """Return whether there is a record of a vif, also a damaged one. ValueError as for `load`."""
        return os.path.lexists(self._path(name))

    def save(self, vif: Vif) -> None:
        """Put a record on disk if it differs; not synced, /run does not outlive the kernel."""
        path = self._path(vif.name.text)
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
        except OSError as error:
            raise FileError(self._folder, error, "run as root") from None
        files.publish(path, render(vif), sync=False)

    def remove(self, name: str) -> None:
        """Forget a vif; nothing to forget is fine."""
        path = self._path(name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(path, error, "run as root") from None

    def names(self) -> tuple[str, ...]:
        """Return names of the vifs that have a record, also a damaged one. Other files are passed over."""
        try:
            found = os.listdir(self._folder)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise FileError(self._folder, error, "run as root") from None
        return tuple(sorted(name for name in found if is_name(name)))

    def all(self, errors: list[GuestnetError] | None = None) -> tuple[Vif, ...]:
        """Return the valid records; a damaged one does not affect the others (behaviour B146).

        Args:
            errors: takes one for each that cannot be read; without it the first is raised.

        Raises:
            FileError: the folder cannot be read.
        """
        found = []
        for name in self.names():
            try:
                vif = self.load(name)
            except FileError as error:
                if errors is None:
                    raise
                errors.append(error)
                continue
            found += [vif] if vif is not None else []
        return tuple(found)

    def changed(self) -> object:
        """Return something that differs after each change of a record; None without any."""
        try:
            return os.stat(self._folder).st_mtime_ns
        except OSError:
            return None

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, parse_name(name).text)


def is_name(name: str) -> bool:
    """Return whether it is the name of a vif."""
    try:
        parse_name(name)
    except ValueError:
        return False
    return True
