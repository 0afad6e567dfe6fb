# SPDX-License-Identifier: GPL-2.0-or-later
"""QubesDB, through its binding or by its protocol."""
