# SPDX-License-Identifier: GPL-2.0-or-later
# fish completion of qubes-guestnet(8)

set -l verbs agent apply plan status monitor check uplink wait-uplink vif dns rules forwarding firewall-unit firewall lab

complete -c qubes-guestnet -f
complete -c qubes-guestnet -l help -d 'show help'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -s V -l version -d 'show the version'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a agent -d 'stay resident and follow QubesDB'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a apply -d 'configure the network with the settings of dom0, once'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a plan -d 'print the changes that apply would make'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a status -d 'print the desired and the actual state'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a monitor -d 'follow what the agent does'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from agent; and not __fish_seen_subcommand_from lab' -s v -l verbose -d 'log each pass'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a check -d 'list problems and their remedies'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a uplink -d 'configure the uplink, for udev and units'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a wait-uplink -d 'return when the current interface is configured'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a vif -d 'configure the interface of a client qube, for Xen'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a dns -d 'redirect the virtual DNS addresses'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a rules -d 'anti-spoofing and the base rules'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a forwarding -d 'open or close forwarding for client qubes'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a firewall-unit -d 'for qubes-firewall.service'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a firewall -d 'show what client qubes may do, and explain it'
complete -c qubes-guestnet -n "not __fish_seen_subcommand_from $verbs" -a lab -d 'qubes in namespaces'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from apply' -s n -l dry-run -d 'change nothing'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from plan status check; and not __fish_seen_subcommand_from lab' -s j -l json -d 'print JSON'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from plan status check; and not __fish_seen_subcommand_from lab' -l color -x -a 'auto always never' -d 'when to use colour'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from status; and not __fish_seen_subcommand_from lab' -s b -l brief -d 'one line per interface'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from status; and not __fish_seen_subcommand_from lab' -s w -l watch -d 'print changes until Ctrl-C'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from apply plan status uplink; and not __fish_seen_subcommand_from lab' -a '(__fish_print_interfaces)'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from uplink' -a 'add remove stop'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from wait-uplink' -l timeout -x -d 'give up after this many seconds'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from wait-uplink' -l boot -d 'wait only as long as the boot requires'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from vif' -a 'online offline'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from dns' -a 'sync'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from rules' -a 'load unload'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from forwarding' -a 'on off hold release'
complete -c qubes-guestnet -n '__fish_seen_subcommand_from firewall-unit' -a 'start stop reload'
# True if the word `firewall` is our verb, not that of the lab.
set -l firewall '__fish_seen_subcommand_from firewall; and not __fish_seen_subcommand_from lab'
complete -c qubes-guestnet -n "$firewall" -a 'show test log print'
complete -c qubes-guestnet -n "$firewall; and __fish_seen_subcommand_from show test log" -a '(__fish_print_interfaces | string match "vif*")'
complete -c qubes-guestnet -n "$firewall; and __fish_seen_subcommand_from test" -a 'tcp udp icmp'
complete -c qubes-guestnet -n "$firewall; and __fish_seen_subcommand_from print" -F
complete -c qubes-guestnet -n "$firewall" -s j -l json -d 'print JSON'
complete -c qubes-guestnet -n "$firewall" -l color -x -a 'auto always never' -d 'when to use colour'

set -l lab_verbs demo run up exec set feature firewall status diagram down store
# True if the word after `lab` is one of the arguments.
function __qubes_guestnet_lab
    set -l words (commandline -opc)
    test "$words[2]" = lab; and contains -- "$words[3]" $argv
end
complete -c qubes-guestnet -n "__fish_seen_subcommand_from lab; and not __qubes_guestnet_lab $lab_verbs" -a "$lab_verbs"
complete -c qubes-guestnet -n '__qubes_guestnet_lab demo run up status' -l json -d 'print JSON'
complete -c qubes-guestnet -n '__qubes_guestnet_lab run up' -l list -d 'only list them'
complete -c qubes-guestnet -n '__qubes_guestnet_lab up exec set feature firewall status diagram down' -l name -x -d 'name of the lab'
complete -c qubes-guestnet -n '__qubes_guestnet_lab up' -F -a 'default ipv6-feature ipv6-tunnel'
# The first column of one of our tables, without its heading.
function __qubes_guestnet_first_column
    qubes-guestnet $argv 2>/dev/null | string trim | string replace -r ' .*' '' | tail -n +2
end
# The qubes of the selected lab.
function __qubes_guestnet_qubes
    set -l words (commandline -opc)
    set -l at (contains -i -- --name $words); and set -l chosen --name $words[(math $at + 1)]
    __qubes_guestnet_first_column lab status --no-measure $chosen
end
complete -c qubes-guestnet -n '__qubes_guestnet_lab run' -a '(__qubes_guestnet_first_column lab run --list)'
complete -c qubes-guestnet -n '__qubes_guestnet_lab exec set feature firewall' -a '(__qubes_guestnet_qubes)'
complete -c qubes-guestnet -n '__qubes_guestnet_lab set' -a 'netvm none'
complete -c qubes-guestnet -n '__qubes_guestnet_lab feature' -a 'ipv6 1'
complete -c qubes-guestnet -n '__qubes_guestnet_lab feature' -l unset -d 'inherit it from the provider'
complete -c qubes-guestnet -n '__qubes_guestnet_lab feature' -l restart -d 'restart the qubes concerned'
complete -c qubes-guestnet -n '__qubes_guestnet_lab firewall' -a 'add del list reset'
complete -c qubes-guestnet -n '__qubes_guestnet_lab firewall' -l raw -d 'print rules as text'
complete -c qubes-guestnet -n '__qubes_guestnet_lab firewall' -s r -l reload -d 'write unchanged rules again'
complete -c qubes-guestnet -n '__qubes_guestnet_lab firewall' -l before -x -d 'add before this rule'
complete -c qubes-guestnet -n '__qubes_guestnet_lab firewall' -l rule-no -x -d 'remove this rule'
complete -c qubes-guestnet -n '__qubes_guestnet_lab status' -l no-measure -d 'send no packets'
complete -c qubes-guestnet -n '__qubes_guestnet_lab diagram' -s o -l output -r -F -d 'output file'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -a 'read write multiread list rm watch'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -l dir -r -F -d 'folder of the sockets'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -l set -x -d 'an initial entry'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -l file -r -F -d 'initial entries'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -l each-removal -d 'one event per removed entry'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -l timeout -x -d 'time limit of an answer'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -s r -l raw -d 'do not escape values'
complete -c qubes-guestnet -n '__qubes_guestnet_lab store' -s n -l count -x -d 'end after this many events'
