# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables: rules as text, and nft's listings as values."""
