# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables, by its program and by netlink messages."""
