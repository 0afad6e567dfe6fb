# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure decisions: this package uses no sockets, files, clock, environment or logging."""
