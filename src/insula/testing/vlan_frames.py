"""What a client of a net qube sends that puts VLAN tags (IEEE 802.1Q, 802.1ad) before its packets: a program for it.

Frames with tags come first, one without last: where that one has arrived, what had not been dropped is there already.
Each packet's data is the name of its kind; each question of ARP has a target of its own.
"""

from __future__ import annotations

UNTAGGED = "untagged"
TAGS = {
    "VLAN": "81000005",
    "VLAN in a VLAN": "8100000581000006",
    "service VLAN": "88a80005",
    "VLAN in a service VLAN": "88a8000581000006",
    "old type": "91000005",
    "VLAN behind a priority": "8100000081000005",
    "service VLAN behind a priority": "8100000088a80005",
    UNTAGGED: "",
}
"""Kind → what stands before the type of the packet, in the order they are sent."""
FORGED = "priority alone, address of somebody else"
"""A tag that names no VLAN means a packet like one without: it is judged by the same rules."""
ARP_NETWORK = "10.137.99"
"""The n-th kind asks for its address n; where packets to it go elsewhere the net qube answers (proxy ARP)."""

_NET_QUBE = "feffffffffff"
"""Hardware address of a net qube's end of a link."""

SEND = f"""
import socket, struct, sys
own, other, target, port, tags = *map(socket.inet_aton, sys.argv[1:4]), int(sys.argv[4]), {TAGS!r}
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x806))
wire.bind(("eth0", 0x806))
wire.settimeout(60)
mac = wire.getsockname()[4]
ends = bytes.fromhex("{_NET_QUBE}") + mac
def packet(source, name):
    data = struct.pack(">HHHH", 40000, port, 8 + len(name), 0) + name.encode()
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, 17, 0) + source + target
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + data
wire.send(ends + bytes.fromhex("810000000800") + packet(other, "{FORGED}"))
for number, (name, tag) in enumerate(tags.items()):
    asked = socket.inet_aton("{ARP_NETWORK}.%d" % number)
    question = bytes.fromhex("0001080006040001") + mac + own + bytes(6) + asked
    wire.send(ends + bytes.fromhex(tag + "0806") + question)
    wire.send(ends + bytes.fromhex(tag + "0800") + packet(own, name))
answered = []
while "{UNTAGGED}" not in answered:
    frame = wire.recv(2048)
    if frame[12:14] == bytes.fromhex("0806") and frame[20:22] == bytes.fromhex("0002"):
        answered.append([*tags][frame[31]])
print(*answered, sep=", ")
"""
"""``python3 -c SEND OWN OTHER TARGET PORT``: tells which questions were answered. OTHER: address of somebody else."""

RECEIVE = f"""
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind((sys.argv[1], int(sys.argv[2])))
receiver.settimeout(60)
arrived = []
while "{UNTAGGED}" not in arrived:
    arrived.append(receiver.recv(64).decode())
print(*arrived, sep=", ")
"""
"""``python3 -c RECEIVE ADDRESS PORT``: tells which packets arrived."""
