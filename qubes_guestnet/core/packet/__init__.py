# SPDX-License-Identifier: GPL-2.0-or-later
"""The way of one packet of a client qube through this provider, by the rules that the kernel has. Pure.

loaded   all tables of the kernel, of any program, as `nft -j list ruleset` prints them
match    whether a packet meets a condition, as far as that is understood
chains   what a chain with a hook makes of a packet
way      the whole way: hooks in their order, route, forwarding
"""
