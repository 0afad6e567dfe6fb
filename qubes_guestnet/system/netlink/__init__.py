# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's routing netlink; only here is pyroute2 imported."""
