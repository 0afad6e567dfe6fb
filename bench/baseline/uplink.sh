#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# What `qubes-guestnet apply` does, as a plain shell script: one compiled QubesDB read a key, one `ip` an object.
# It checks nothing, verifies nothing and remembers nothing, so it is the fast end of what a script can be.
set -e

read_key() { # KEY: the interface's own set where dom0 gave one, else the global one
    "$QDB_READ" "$set$1" || :
}

mac=$("$QDB_READ" /qubes-mac)
interface=
while IFS=' ' read -r _ name rest; do
    case $rest in *"link/ether $mac"*) interface=${name%%[:@]*} ;; esac
done <<END
$(ip -oneline link show)
END
[ -n "$interface" ] || exit 1

set=/qubes-
"$QDB_READ" "/net-config/$mac/ip" >/dev/null && set=/net-config/$mac/
custom=$("$QDB_READ" "/net-config/$mac/custom") || :
ip=$(read_key ip) netmask=$(read_key netmask) gateway=$(read_key gateway)
ip6=$(read_key ip6) netmask6=$(read_key netmask6) gateway6=$(read_key gateway6)
primary=$("$QDB_READ" /qubes-primary-dns) || :
secondary=$("$QDB_READ" /qubes-secondary-dns) || :

sysctl=/lib/systemd/systemd-sysctl
[ ! -x $sysctl ] || $sysctl --prefix="/net/ipv4/conf/$interface" --prefix="/net/ipv4/neigh/$interface" \
    --prefix="/net/ipv6/conf/$interface" --prefix="/net/ipv6/neigh/$interface"
ip link set dev "$interface" group 1
ip link set dev "$interface" up
ip -4 address replace "$ip/${netmask:-255.255.255.255}" dev "$interface"
[ -n "$custom" ] || ip neighbour replace "$gateway" lladdr fe:ff:ff:ff:ff:ff nud permanent dev "$interface"
ip -4 route replace default dev "$interface" scope link proto 81
if [ -n "$ip6" ]; then
    ip -6 address replace "$ip6/${netmask6:-128}" dev "$interface" nodad
    if [ -n "$gateway6" ]; then
        [ -n "$custom" ] || ip neighbour replace "$gateway6" lladdr fe:ff:ff:ff:ff:ff nud permanent dev "$interface"
        case $gateway6 in fe80:*) ;; *) ip -6 route replace "$gateway6" dev "$interface" proto 81 ;; esac
        ip -6 route replace default via "$gateway6" dev "$interface" onlink proto 81
    fi
fi

{
    [ -z "$primary" ] || echo "nameserver $primary"
    [ -z "$secondary" ] || echo "nameserver $secondary"
} >/etc/.resolv.conf.new
mv /etc/.resolv.conf.new /etc/resolv.conf
