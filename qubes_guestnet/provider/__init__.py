# SPDX-License-Identifier: GPL-2.0-or-later
"""What a provider observes and remembers for the qubes behind it; `core` decides, `system` acts."""
