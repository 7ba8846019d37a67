"""A world outside in a qube: a net qube without uplink that has servers at addresses of its own.

What its clients send is recorded where it arrives, so a test sees what left another net qube, packet by packet, and
needs no network of this machine.
"""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass

from insula.model.errors import QubesVMNotFoundError, QubesVMNotStartedError
from insula.rpc.client import RpcError
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, run, sh

WEB = "198.51.100.2"
"""Of its web server; an address for documentation (RFC 5737), as all here."""
ENDPOINT = "198.51.100.1"
"""For other ends of tunnels."""
ANSWER = "the world outside"
_FOLDER = "/run/world"

_SERVERS = f"""
import http.server, socket, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b"{ANSWER}, asked by %s" % self.client_address[0].encode())
    def log_message(self, *_): pass
def names():
    # Whoever asks for whatever name is told the address of the web server.
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 53))
    while True:
        question, asker = server.recvfrom(512)
        end = question.index(0, 12) + 5
        answer = question[:2] + bytes.fromhex("81800001000100000000") + question[12:end]
        answer += bytes.fromhex("c00c000100010000003c0004") + socket.inet_aton("{WEB}")
        open("{_FOLDER}/asked", "a").write(asker[0] + chr(10))
        try: server.sendto(answer, asker)
        except OSError: pass
threading.Thread(target=names, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Page).serve_forever()
"""
_RECORDER = f"""
import json, socket, struct
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
out = open("{_FOLDER}/packets", "a", buffering=1)
while True:
    frame, (name, kind, direction, _, _) = wire.recvfrom(2048)
    # 4: what this qube sends itself.
    if not name.startswith("vif") or direction == 4: continue
    if kind != 0x0800:
        packet = ("ethertype %#06x" % kind, "", 0)
    else:
        start = 14 + (frame[14] & 15) * 4
        protocol = {{1: "icmp", 6: "tcp", 17: "udp"}}.get(frame[23], str(frame[23]))
        port = struct.unpack_from(">H", frame, start + 2)[0] if protocol in ("tcp", "udp") else 0
        packet = (protocol, socket.inet_ntoa(frame[30:34]), port)
    out.write(json.dumps(packet) + chr(10))
"""
_NOISE_FILE = "/run/noise.rounds"
_FETCH = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])) as server:
    server.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(server.makefile("rb").read().decode())
"""
"""(What knows all of HTTP takes a second to load, under emulation.)"""
NOISE = f"""
import os, socket, time
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(("eth0", 0))
six = bytes.fromhex("feffffffffff00163e5e6c0086dd6000000000083a40") + bytes(15) + bytes.fromhex("01ff02") + bytes(14)
question = bytes.fromhex("1234010000010000000000000377777707657861") + b"mple" + bytes.fromhex("0000010001")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
def attempt(function, *arguments):
    try: function(*arguments)
    except OSError: pass
rounds = 0
while True:
    for server in ("10.139.1.1", "10.139.1.2", "{WEB}"): attempt(udp.sendto, question, (server, 53))
    attempt(udp.sendto, b"x", ("{WEB}", 9999))
    attempt(icmp.sendto, bytes.fromhex("0800f7ff00000000"), ("{WEB}", 0))
    attempt(raw.send, six + bytes(8))
    tcp = socket.socket(); tcp.setblocking(False); attempt(tcp.connect, ("{WEB}", 80))
    rounds += 1
    open("{_NOISE_FILE}.new", "w").write("%d" % rounds); os.replace("{_NOISE_FILE}.new", "{_NOISE_FILE}")
    time.sleep(0.5); tcp.close()
"""
"""What a client sends that does not care: questions for names, all protocols, both families; it counts its rounds."""
_STATE = """
date +%s; ip -br address; ip rule | grep -v -e main -e default -e local; ip route; ip route show table 5300; ip neigh
wg show; nft list ruleset | grep 'counter packets' | grep -v 'packets 0 '
journalctl -b -o short-monotonic -u insula-agent -u insula-vpn | tail -15
"""
_LOG_LINES = 30
"""Of the daemon's log."""
_ROUNDS = 4
"""Of noise that a test looks at: the first may have begun before, the last may be on its way."""


@dataclass(frozen=True)
class Packet:
    """What arrived from a client."""

    protocol: str
    target: str
    port: int


@dataclass(frozen=True)
class World:
    """A running qube; its servers answer on all its addresses."""

    daemon: DaemonProcess
    name: str

    async def packets(self) -> list[Packet]:
        """What clients have sent since the last time."""
        text = await sh(self.daemon, self.name, f"cd {_FOLDER} && cat packets; : > packets", user="root")
        return [Packet(*json.loads(line)) for line in text.splitlines()]

    async def asked(self) -> list[str]:
        """Who has asked for names since the last time, each once."""
        text = await sh(self.daemon, self.name, f"cd {_FOLDER} && sort -u asked; : > asked", user="root")
        return text.split()


def fetch_command(host: str, limit_s: float, port: int = 80) -> str:
    """What prints the answer of a web server, in a qube's shell."""
    return shlex.join(["python3", "-IS", "-c", _FETCH, host, str(port), str(limit_s)])


async def make_world(daemon: DaemonProcess, name: str) -> World:
    await daemon.client.create_qube("AppVM", name, "red", template=TEMPLATE)
    await daemon.client.set_property("netvm", "", name)
    await daemon.client.set_property("provides_network", "True", name)
    await daemon.client.start(name)
    # What is here is for clients: the rules that keep them out of a net qube would keep them out of the world.
    await sh(
        daemon,
        name,
        f"mkdir -p {_FOLDER} && cd {_FOLDER} && touch packets asked"
        f" && ip address add {WEB}/32 dev lo && ip address add {ENDPOINT}/32 dev lo",
        user="root",
    )
    return World(daemon, name)


async def open_world(world: World) -> None:
    """Start servers and recorder; after the first client is linked, for its rules come then."""
    await start_program(world.daemon, world.name, "servers", _SERVERS)
    await start_program(world.daemon, world.name, "recorder", _RECORDER)
    rule = "nft add rule ip qubes custom-input accept && nft add rule ip qubes custom-forward drop"
    await sh(world.daemon, world.name, rule, user="root")


async def start_program(daemon: DaemonProcess, qube: str, name: str, program: str) -> None:
    """Leave a Python program running in a qube, as root."""
    command = f"cat > /run/{name}.py && (nohup python3 -I /run/{name}.py > /run/{name}.log 2>&1 &)"
    result = await run(daemon, qube, command, user="root", stdin=program.encode())
    assert result.code == 0, result.err


async def rounds_of_noise(daemon: DaemonProcess, qube: str) -> None:
    """Return when a client has tried everything a few times more, however slow it is."""
    command = f"end=$(($(cat {_NOISE_FILE}) + {_ROUNDS})); until [ $(cat {_NOISE_FILE}) -ge $end ]; do sleep 0.1; done"
    await sh(daemon, qube, command, user="root")


async def state_of_network(daemon: DaemonProcess, *qubes: str) -> str:
    """Why one does not reach another: what each of them has, and what the daemon said, for the message of a failure."""
    told = []
    for qube in qubes:
        try:
            told.append((await run(daemon, qube, f"exec 2>/dev/null; {_STATE}", user="root")).text)
        except (RpcError, OSError) as error:
            told.append(f"does not answer: {error!r}")
    told.append("\n".join(daemon.log().splitlines()[-_LOG_LINES:]))
    return "\n".join([f"--- {name}\n{text}" for name, text in zip([*qubes, "insulad"], told, strict=True)])


async def discard(daemon: DaemonProcess, *names: str) -> None:
    """Kill and remove qubes, clients first."""
    for name in names:
        with suppress(QubesVMNotStartedError, QubesVMNotFoundError):
            await daemon.client.kill(name)
    for name in names:
        with suppress(QubesVMNotFoundError):
            await daemon.client.remove(name)
