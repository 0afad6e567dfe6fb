# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure decisions: no sockets, files, clock, environment or logging in here."""
