# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider and the interfaces of its client qubes: decisions."""
