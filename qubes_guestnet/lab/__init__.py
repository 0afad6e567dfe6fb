# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes in namespaces: dom0, a QubesDB daemon and a world, without root or Xen."""
