# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools of the source tree; nothing here is installed."""
