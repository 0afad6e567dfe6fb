# SPDX-License-Identifier: GPL-2.0-or-later
"""The factor of all deadlines of the lab, relative to real hardware.

Only a failure waits for the whole deadline. The tests raise the factor in an emulated machine, which is many times
slower, even more so on a busy host.
"""

factor = 1.0


def patient(seconds: float) -> float:
    """Convert a deadline for real hardware to this machine; both in seconds."""
    return seconds * factor
