# SPDX-License-Identifier: GPL-2.0-or-later
"""What `--help` prints: as `parser` makes it in 80 columns, which takes argparse and so 20 ms more; a test compares."""

EPILOG = """\
examples:
  qubes-guestnet status            print the state of this qube's network
  qubes-guestnet check             list problems and their remedies
  qubes-guestnet plan              print the changes that `apply` would make
  sudo qubes-guestnet apply        make them
  qubes-guestnet VERB --help       show the help of one verb

Exit status: 0 success, or nothing to do; 1 failure (status, check: there is a problem); 2 wrong usage;
3 firewall test: the packet does not pass, 4: the verdict is unknown; 100 dns sync: no change.

See qubes-guestnet(8) for details.
"""
HELP = f"""\
usage: qubes-guestnet [-h] [-V] VERB ...

Network agent of a Qubes OS virtual machine: QubesDB to kernel and resolv.conf.

positional arguments:
  VERB
    agent        stay resident and follow QubesDB; systemd runs it
    apply        configure the network with dom0's settings, once
    plan         print the changes that apply would make, one per line
    status       print the desired and the actual state
    monitor      follow what the agent does, until Ctrl-C
    check        list problems, with codes and remedies
    uplink       configure this qube's own interface, or take it down
    wait-uplink  return when the current interface is configured
    vif          configure the interface of a client qube; Xen's hotplug calls
                 it
    dns          redirect the virtual DNS addresses to the upstream servers
    rules        load or remove anti-spoofing and base rules
    forwarding   open or close forwarding for client qubes
    firewall-unit
                 switch the enforcement of qvm-firewall's rules on or off;
                 qubes-firewall.service calls it
    firewall     show what client qubes may do, and explain why a packet is
                 refused
    lab          build a small Qubes network in namespaces, for tests

options:
  -h, --help     show this help message and exit
  -V, --version  show program's version number and exit

{EPILOG}"""
