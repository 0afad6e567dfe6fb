# SPDX-License-Identifier: GPL-2.0-or-later
"""The uplink's part of a pass: observe the services related to it, without decisions."""
