"""What of a guest's frames goes on to the outside."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.uplink import OUTSIDE_DNS, OUTSIDE_GATEWAY
from insula.net.screen import may_pass
from insula.testing.cable_guest import arp_question, packet

ICMP, IGMP, TCP, UDP = 1, 2, 6, 17
TO_WEB = struct.pack(">HH", 40000, 80) + bytes(16)
TO_DNS = struct.pack(">HH", 40000, 53) + bytes(16)


@pytest.mark.parametrize(
    ("target", "protocol", "payload"),
    [
        ("198.51.100.7", TCP, TO_WEB),
        ("198.51.100.7", UDP, TO_WEB),
        ("198.51.100.7", ICMP, bytes(8)),
        ("192.168.1.1", TCP, TO_WEB),
        (OUTSIDE_DNS, UDP, TO_DNS),
        (OUTSIDE_DNS, TCP, TO_DNS),
        (OUTSIDE_GATEWAY, ICMP, bytes(8)),
    ],
)
def test_what_the_way_out_is_for_passes(target: str, protocol: int, payload: bytes) -> None:
    assert may_pass(packet(target, protocol, payload))


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1", "127.255.255.254", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "10.0.2.255"],
)
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_addresses_of_the_host_or_its_link_do_not(target: str, protocol: int) -> None:
    """MC-88"""
    assert not may_pass(packet(target, protocol, TO_WEB))


@pytest.mark.parametrize(
    ("target", "protocol", "payload"),
    [
        (OUTSIDE_GATEWAY, TCP, TO_WEB),
        (OUTSIDE_GATEWAY, UDP, struct.pack(">HH", 40000, 69) + bytes(16)),
        (OUTSIDE_DNS, TCP, TO_WEB),
        (OUTSIDE_DNS, UDP, TO_WEB),
        (OUTSIDE_DNS, ICMP, bytes(8)),
        (OUTSIDE_DNS, UDP, b""),
        ("10.0.2.9", TCP, TO_WEB),
        ("198.51.100.7", IGMP, bytes(8)),
    ],
)
def test_services_that_the_way_out_has_not_do_not(target: str, protocol: int, payload: bytes) -> None:
    assert not may_pass(packet(target, protocol, payload))


def test_source_of_somebody_else_does_not() -> None:
    assert not may_pass(packet("198.51.100.7", TCP, TO_WEB, source="10.0.2.16"))


def test_arp_passes_whole() -> None:
    assert may_pass(arp_question())
    assert not may_pass(arp_question()[:-1])


@pytest.mark.parametrize("kind", [b"\x86\xdd", b"\x88\xf8", b"\x81\x00", b"\x88\xa8", b"\x91\x00", b"\x00\x00"])
def test_other_families_do_not(kind: bytes) -> None:
    """MC-80"""
    frame = packet("198.51.100.7", TCP, TO_WEB)
    assert not may_pass(frame[:12] + kind + frame[14:])


@given(st.binary(max_size=80), st.sampled_from([b"\x08\x00", b"\x08\x06", b""]))
def test_any_bytes_are_judged(data: bytes, kind: bytes) -> None:
    frame = data[:12].ljust(12, b"\0") + kind + data[12:]
    assert may_pass(frame) in (True, False)


@given(st.integers(0, 54))
def test_half_a_frame_is_judged(size: int) -> None:
    assert may_pass(packet(OUTSIDE_DNS, UDP, TO_DNS)[:size]) in (True, False)


@pytest.mark.parametrize("flags_and_offset", [0x2000, 0x0001, 0x2001, 0x1FFF])
def test_part_of_a_packet_for_the_name_server_does_not(flags_and_offset: int) -> None:
    """MC-88: put together again, parts that overlap may go to another port of the host's own name server."""
    frame = bytearray(packet(OUTSIDE_DNS, UDP, TO_DNS))
    frame[20:22] = flags_and_offset.to_bytes(2, "big")
    assert not may_pass(bytes(frame))
    outside = bytearray(packet("198.51.100.7", UDP, TO_WEB))
    outside[20:22] = flags_and_offset.to_bytes(2, "big")
    assert may_pass(bytes(outside))
