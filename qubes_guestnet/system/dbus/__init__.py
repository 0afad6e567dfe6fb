# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus, and the services on it."""
