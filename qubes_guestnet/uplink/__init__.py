# SPDX-License-Identifier: GPL-2.0-or-later
"""The uplink's own part of a pass: what is observed of the services that have to do with it. It decides nothing."""
