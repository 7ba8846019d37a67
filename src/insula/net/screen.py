"""Which frames of a guest go on to the outside: a pure function, before any other code looks at them.

Only what the way out is for: ARP, and IPv4 from the guest's own address with TCP, UDP or ICMP in it. Not to addresses
that would mean this host or its link instead of the network: its loopback (MC-88), ``0.0.0.0``, link-local ones (where
clouds keep the secrets of a machine), groups and broadcasts. Of the addresses the way out has itself, the name server
has its port, and the gateway answers a ping; both answer ARP.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_DNS, OUTSIDE_GATEWAY, OUTSIDE_NETMASK

_ETHERNET = 14
_ARP_FRAME = _ETHERNET + 28
"""With addresses of Ethernet and IPv4 (RFC 826)."""
_IP_HEADER = 20
_TYPE_ARP = b"\x08\x06"
_TYPE_IPV4 = b"\x08\x00"
_ICMP, _TCP, _UDP = 1, 6, 17
_DNS_PORT = (53).to_bytes(2, "big")
_FRAGMENT = 0x3FFF
"""Of the flags and the offset (RFC 791): "more fragments", and where this one goes; 0 in a whole packet."""

_GUEST = IPv4Address(OUTSIDE_ADDRESS).packed
_GATEWAY = IPv4Address(OUTSIDE_GATEWAY).packed
_DNS = IPv4Address(OUTSIDE_DNS).packed
_NETWORK = IPv4Network(f"{OUTSIDE_GATEWAY}/{OUTSIDE_NETMASK}", strict=False)
_OWN = _NETWORK.network_address.packed[:3]
_NOWHERE = frozenset((0, 127)) | frozenset(range(224, 256))
"""First bytes: this host, its loopback, groups and what is reserved, the broadcast address among it (RFC 6890)."""
_LINK_LOCAL = bytes((169, 254))

assert _NETWORK.prefixlen == 24  # three bytes tell


def may_pass(frame: bytes) -> bool:
    """Whether a frame of the guest is one for the outside. Never raises."""
    kind = frame[12:14]
    if kind == _TYPE_ARP:
        return len(frame) >= _ARP_FRAME
    if kind != _TYPE_IPV4 or len(frame) < _ETHERNET + _IP_HEADER or frame[14] >> 4 != 4:
        return False
    protocol, target = frame[23], frame[30:34]
    if frame[26:30] != _GUEST or target[0] in _NOWHERE or target[:2] == _LINK_LOCAL:
        return False
    if target[:3] == _OWN:
        return _is_for_the_way_out(frame, protocol, target)
    return protocol in (_TCP, _UDP, _ICMP)


def _is_for_the_way_out(frame: bytes, protocol: int, target: bytes) -> bool:
    if target == _GATEWAY:
        return protocol == _ICMP
    if target != _DNS or protocol not in (_UDP, _TCP):
        return False
    if int.from_bytes(frame[20:22], "big") & _FRAGMENT:
        # No question is so long; and of parts that overlap, a later one could change the port that was looked at.
        return False
    ports = _ETHERNET + (frame[14] & 0xF) * 4
    return frame[ports + 2 : ports + 4] == _DNS_PORT
