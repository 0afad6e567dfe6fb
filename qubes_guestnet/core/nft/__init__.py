# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables: rules as text, and what nft lists of them as values."""
