# SPDX-License-Identifier: GPL-2.0-or-later
"""The name look-up of the firewall: the program of qubes-guestnet-names.service, the only part with internet sockets.

The agent never imports it. What it reads is from the network, so it can do nothing but answer (systemd's sandbox).
"""
