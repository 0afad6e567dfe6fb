# SPDX-License-Identifier: GPL-2.0-or-later
"""Name servers: resolv.conf, systemd-resolved, and the redirection of the virtual DNS addresses."""
