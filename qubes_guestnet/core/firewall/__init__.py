# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes: what `qvm-firewall` and the Qubes GUI set, from QubesDB entries to text for nft. Pure.

In the order in which a pass uses them:

    entries     QubesDB entries, by address of the qube
    commits     which of these sets are in force: the commit protocol of dom0
    parsing     one set → a `Ruleset` (`rules`), with every error
    binding     host names → addresses; the modules names… hold what name servers answered
    lines       what is in force, as values and as rules for nft
    evaluator   the answer for one packet, and the entry that decides
    ruleset     the texts for nft
    listing     what `nft list` says is loaded
    plan        the difference, as `operations`
    enforcement what a pass remembers and wants, with the `consequences` of a change
    connections the conntrack entries that a change has turned to refused
    condition   what `status` and `check` say of it

`prediction` says what will be listed once a plan is loaded, so that a pass need not ask nft for it.

A set that is not wholly understood refuses all traffic of its own address, and changes nothing for another one.
"""
