# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion of qubes-guestnet(8)

_qubes_guestnet() {
    local word=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} words=
    COMPREPLY=()
    if [[ $verb != lab && ${COMP_WORDS[COMP_CWORD - 1]} == --color ]]; then
        words='auto always never'
    elif ((COMP_CWORD == 1)); then
        words='agent apply plan status monitor check uplink wait-uplink vif dns rules forwarding firewall-unit firewall lab'
        words="$words --help --version"
    else
        case $verb in
        apply) words="--dry-run --help $(_qubes_guestnet_interfaces)" ;;
        plan) words="--json --color --help $(_qubes_guestnet_interfaces)" ;;
        status) words="--json --brief --watch --color --help $(_qubes_guestnet_interfaces)" ;;
        check | monitor) words='--json --color --help' ;;
        uplink)
            if ((COMP_CWORD == 2)); then words='add remove stop --help'; else words=$(_qubes_guestnet_interfaces); fi
            ;;
        wait-uplink) words='--timeout --boot --help' ;;
        vif) if ((COMP_CWORD == 2)); then words='online offline --help'; fi ;;
        dns) if ((COMP_CWORD == 2)); then words='sync --help'; fi ;;
        rules) if ((COMP_CWORD == 2)); then words='load unload --help'; fi ;;
        forwarding) if ((COMP_CWORD == 2)); then words='on off hold release --help'; fi ;;
        firewall-unit) if ((COMP_CWORD == 2)); then words='start stop reload --help'; fi ;;
        firewall)
            if ((COMP_CWORD == 2)); then
                words='show test log print --help'
                [[ $word != -* ]] || words='--json --color --help'
            else
                words="--json --color --help $(_qubes_guestnet_firewall)"
            fi
            ;;
        agent) words='--verbose --help' ;;
        lab) _qubes_guestnet_lab; return ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

# The words that an action of `firewall` takes at this position: a qube by its vif, then a protocol; or a file.
_qubes_guestnet_firewall() {
    case ${COMP_WORDS[2]},$COMP_CWORD in
    print,*) compgen -f -- "${COMP_WORDS[COMP_CWORD]}" ;;
    *,3) _qubes_guestnet_interfaces | grep '^vif' ;;
    test,5) echo tcp udp icmp ;;
    esac
}

_qubes_guestnet_lab() {
    local word=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[2]} words=
    if ((COMP_CWORD == 2)); then
        words='demo run up exec set feature firewall status diagram down store'
    else
        case $verb in
        demo) words='--json' ;;
        run) words="--list --json $(_qubes_guestnet_first_column lab run --list)" ;;
        up) words="default ipv6-feature ipv6-tunnel --name --list --json $(compgen -f -X '!*.toml' -- "$word")" ;;
        down) words='--name' ;;
        exec) words="--name $(_qubes_guestnet_qubes)" ;;
        set) words="netvm none --name $(_qubes_guestnet_qubes)" ;;
        feature) words="ipv6 1 --unset --restart --name $(_qubes_guestnet_qubes)" ;;
        firewall)
            words="add del list reset --name --raw --reload --before --rule-no $(_qubes_guestnet_qubes)"
            ;;
        status) words='--name --no-measure --json' ;;
        diagram) words='--name --output' ;;
        store)
            words='read write multiread list rm watch --dir --set --file --each-removal --timeout --raw --count'
            ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words --help" -- "$word")
}

# The qubes of the selected lab.
_qubes_guestnet_qubes() {
    local position name=()
    for ((position = 3; position < COMP_CWORD; position++)); do
        [[ ${COMP_WORDS[position]} != --name ]] || name=(--name "${COMP_WORDS[position + 1]}")
    done
    _qubes_guestnet_first_column lab status --no-measure "${name[@]}"
}

# The first column of one of our tables, without its heading.
_qubes_guestnet_first_column() {
    "${COMP_WORDS[0]}" "$@" 2>/dev/null | while read -r first _; do echo "$first"; done | tail -n +2
}

_qubes_guestnet_interfaces() {
    local folder
    for folder in /sys/class/net/*; do
        echo "${folder##*/}"
    done
}

complete -F _qubes_guestnet qubes-guestnet
