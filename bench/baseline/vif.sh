#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# What `qubes-guestnet vif online` does, as a plain shell script: one xenstore-read a node, one compiled QubesDB read a
# key, one `ip` an object, one transaction of nft. The base rules are loaded already, as they are for the command.
# It waits for nothing, checks nothing, verifies nothing and remembers nothing: the fast end of what a script can be.
set -e

mac=$(xenstore-read "$XENBUS_PATH/mac")
: "$(xenstore-read "$XENBUS_PATH/type")"
[ -n "$ip" ] || ip=$(xenstore-read "$XENBUS_PATH/ip")
network=$("$QDB_READ" /qubes-netvm-network)
[ -n "$network" ] && [ -e /run/qubes-service/qubes-network ]
gateway=$("$QDB_READ" /qubes-netvm-gateway)
gateway6=$("$QDB_READ" /qubes-netvm-gateway6) || :

ip4='' ip6=''
for address in $ip; do
    case $address in *:*) ip6=$address ;; *) ip4=$address ;; esac
done
# Fake addresses take more than this.
[ -z "$("$QDB_READ" "/mapped-ip/$ip4/visible-ip")" ] || exit 1

# A table without an entry is not walked, as by the command; with one, each of these walks it.
# The kernel gives a shell, which reads byte by byte, the first digit only.
read -r count </proc/sys/net/netfilter/nf_conntrack_count || :
if [ "$count" != 0 ]; then
    for address in $ip; do
        for side in --orig-src --orig-dst --reply-src --reply-dst; do
            conntrack -D $side "$address" >/dev/null 2>&1 || :
        done
    done
fi

cd /proc/sys/net
echo 1 >"ipv4/conf/$vif/proxy_arp"
echo 0 >"ipv4/neigh/$vif/proxy_delay"
if [ -n "$ip6" ]; then
    echo 0 >"ipv6/conf/$vif/disable_ipv6"
    echo 0 >"ipv6/conf/$vif/accept_ra"
    echo 1 >"ipv6/conf/$vif/drop_unsolicited_na"
    echo 1 >"ipv6/conf/$vif/proxy_ndp"
    echo 0 >"ipv6/neigh/$vif/proxy_delay"
else
    echo 1 >"ipv6/conf/$vif/disable_ipv6"
fi
ip link set dev "$vif" group 2
ip address add "$gateway/32" dev "$vif"
ip neighbour replace "$ip4" lladdr "$mac" nud permanent dev "$vif"
if [ -n "$ip6" ]; then
    ip -6 address add "$gateway6/128" dev "$vif" nodad
    ip neighbour replace "$ip6" lladdr "$mac" nud permanent dev "$vif"
fi

{
    echo "add element ip qubes allowed { \"$vif\" . $ip4 }"
    echo "add element ip qubes downstream { $ip4 }"
    if [ -n "$ip6" ]; then
        echo "add element ip6 qubes allowed { \"$vif\" . $ip6 }"
        echo "add element ip6 qubes downstream { $ip6 }"
    fi
} | nft -f -

domid=${vif#vif}
metric=$((32752 - ${domid%.*}))
ip link set dev "$vif" up
ip route add "$ip4/32" dev "$vif" scope link proto 81 metric $metric
[ -z "$ip6" ] || ip -6 route add "$ip6/128" dev "$vif" proto 81 metric $metric

xenstore-write "$XENBUS_PATH/hotplug-status" connected
