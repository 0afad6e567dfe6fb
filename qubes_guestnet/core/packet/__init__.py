# SPDX-License-Identifier: GPL-2.0-or-later
"""The path of one packet of a client qube through this provider, by the rules in the kernel. Pure.

loaded   all tables of the kernel, of any program, as `nft -j list ruleset` prints them
match    whether a packet matches a condition, as far as that is understood
chains   the verdict of a chain with a hook for a packet
way      the whole path: hooks in their order, route, forwarding
"""
