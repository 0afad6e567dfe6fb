# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of client qubes, which `qvm-firewall` and the Qubes GUI set: from QubesDB entries to text for nft. Pure.

The modules, in the order in which a pass uses them:

    entries     QubesDB entries, by address of the qube
    commits     the sets of entries in force: the commit protocol of dom0
    parsing     one set → a `Ruleset` (`rules`), with every error
    binding     host names → addresses; the modules name_… hold the answers of name servers
    lines       the rules in force, as values and as rules for nft
    evaluator   the verdict for one packet, and the entry that decides
    ruleset     the texts for nft
    listing     the loaded rules, parsed from `nft list`
    plan        the difference, as `operations`
    enforcement the state of a pass and its desired rules, with the `consequences` of a change
    connections the conntrack entries that a change refuses
    condition   the facts for `status` and `check`

`prediction` computes the listing after a plan, so that a pass need not run nft for it.

A set with an error refuses all traffic of its own address, and does not affect others.
"""
