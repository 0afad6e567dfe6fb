# SPDX-License-Identifier: GPL-2.0-or-later
"""Network agent of a Qubes OS virtual machine: QubesDB to kernel and resolv.conf."""

__version__ = "0.1.0"
