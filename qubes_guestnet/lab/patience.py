# SPDX-License-Identifier: GPL-2.0-or-later
"""How much longer than on real hardware the lab waits: the one factor of all its deadlines.

A deadline is only ever spent by what fails. The tests set the factor where they run in an emulated machine, which is
many times slower, and slower still while its host has other work.
"""

factor = 1.0


def patient(seconds: float) -> float:
    """Return a deadline for this machine, from that for real hardware; both in seconds."""
    return seconds * factor
