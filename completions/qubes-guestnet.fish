# SPDX-License-Identifier: GPL-2.0-or-later
# fish completion of qubes-guestnet(8)

set -l verbs agent apply plan status check uplink wait-uplink vif dns rules forwarding lab

complete -c qubes-guestnet -f
complete -c qubes-guestnet -l help -d 'show help'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -l version -d 'show the version'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a agent -d 'stay resident and follow QubesDB'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a apply -d 'make the network what dom0 asks for, once'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a plan -d 'print what apply would do'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a status -d 'what is desired, what is there, since when'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a check -d 'diagnose'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a uplink -d 'what udev and the units call'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a wait-uplink -d 'return when the current interface is configured'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a vif -d 'what Xen calls when an interface of another qube comes or goes'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a dns -d 'name servers of the qubes behind this one'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a rules -d 'anti-spoofing and the base rules'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a forwarding -d 'what qubes-network.service calls'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a lab -d 'qubes out of namespaces'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from apply' -l dry-run -d 'do nothing'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from plan status check' -l json -d 'print JSON'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from apply plan status uplink' -a '(__fish_print_interfaces)'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from uplink' -a 'add remove'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from wait-uplink' -l timeout -x -d 'give up after this many seconds'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from vif' -a 'online offline'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from dns' -a 'sync'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from rules' -a 'load unload'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from forwarding' -a 'on off'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from lab' -a 'demo run up exec set feature status diagram down store'
