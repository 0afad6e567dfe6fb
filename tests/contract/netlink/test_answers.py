# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of the kernel that are late, interrupted, refusing or missing, by a socket that says what it is told."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

import pytest

from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system.netlink import rtnl as netlink

MAC = "00:16:3e:5e:6c:05"
GATEWAY = ipaddress.ip_address("10.137.0.1")
RTM_NEWLINK, NLMSG_DONE = 16, 3


class Scripted:
    """A socket that says what it is told; the sequence number of the request is put in."""

    def __init__(self, *packets: bytes) -> None:
        self.packets: Iterator[bytes] = iter(packets)
        self.sent = 0
        self.sequence = b""

    def send(self, data: bytes) -> int:
        self.sent += 1
        self.sequence = bytes(data[8:12])
        return len(data)

    def close(self) -> None:
        pass

    def recv(self, _size: int) -> bytes:
        packet = next(self.packets)
        return packet.replace(b"SEQN", self.sequence)


def message(kind: int, flags: int = 2, body: bytes = b"", sequence: bytes = b"SEQN") -> bytes:
    return struct.pack("=IHH", 16 + len(body), kind, flags) + sequence + struct.pack("=I", 0) + body


DONE = message(NLMSG_DONE, body=struct.pack("=i", 0))


def scripted(kernel: netlink.Kernel, *packets: bytes) -> Scripted:
    kernel.close()
    kernel._socket = script = Scripted(*packets)  # type: ignore[assignment]
    return script


def test_the_tail_of_an_old_request_is_passed_over(kernel: netlink.Kernel) -> None:
    old = message(2, body=struct.pack("=i", -1) + bytes(16), sequence=b"\xff\xff\xff\x7f")
    script = scripted(kernel, old + old, DONE)
    assert kernel.links(frozenset({MAC})) == ()
    assert script.sent == 1


@pytest.mark.parametrize("place", ["entry", "end"])
def test_an_interrupted_dump_is_asked_for_again(kernel: netlink.Kernel, place: str) -> None:
    entry = message(RTM_NEWLINK, 0x12 if place == "entry" else 2, bytes(16))
    end = message(NLMSG_DONE, 0x12 if place == "end" else 2, struct.pack("=i", 0))
    script = scripted(kernel, entry + end, DONE)
    assert kernel.links(frozenset({MAC})) == ()
    assert script.sent == 2


def test_a_dump_that_never_is_whole_is_an_error_that_may_heal(kernel: netlink.Kernel) -> None:
    interrupted = message(NLMSG_DONE, 0x12, struct.pack("=i", 0))
    scripted(kernel, *[interrupted] * 50)
    with pytest.raises(KernelError) as error:
        kernel.links(frozenset({MAC}))
    assert error.value.retryable


@pytest.mark.parametrize("number", [93, 95, 97, 2])  # EPROTONOSUPPORT and its like, from a kernel without IPv6
def test_a_kernel_without_ipv6_has_no_ipv6_things(kernel: netlink.Kernel, number: int) -> None:
    (link,) = kernel.links(frozenset({MAC}))
    refusal = message(2, 0, struct.pack("=i", -number) + bytes(16))
    scripted(kernel, DONE, DONE, refusal)
    if number == 93:
        with pytest.raises(KernelError):
            kernel.observe(link, ())
    else:
        assert kernel.observe(link, ()).routes == frozenset()


def test_a_kernel_that_does_not_answer_is_an_error(kernel: netlink.Kernel) -> None:
    class Silent(Scripted):
        def recv(self, _size: int) -> bytes:
            raise TimeoutError("timed out")

    (link,) = kernel.links(frozenset({MAC}))
    kernel.close()
    kernel._socket = Silent()  # type: ignore[assignment]
    for call in (
        lambda: kernel.links(frozenset({MAC})),
        lambda: kernel.neighbour(link.ifindex, GATEWAY),
        lambda: kernel.apply(Op(Verb.LINK_UP, link.ifindex, "eth0")),
        lambda: kernel.solicit(link.ifindex, GATEWAY),
    ):
        with pytest.raises(KernelError):
            call()
