"""A Tor network in a qube that is the world: one directory authority and relays, real processes of ``tor``.

Its numbers are those of a network for tests (tor(1), "TestingTorNetwork"): a consensus within seconds, relays of one
network, private keys that nobody keeps. The long keys of the authority are made on this machine, for under software
emulation they would take minutes.
"""

from __future__ import annotations

import shlex
import subprocess

from insula.testing.guest import run, sh
from insula.testing.net_world import WEB, World

AUTHORITY = "198.51.100.11"
RELAYS = ("198.51.100.12", "198.51.100.13", "198.51.100.14")
OR_PORT = 5001
DIR_PORT = 7001
VOTING_S = 10
"""Between two votes; it divides half an hour."""
DELAY_S = 2
"""For votes and for signatures to arrive: the least there may be."""
_FOLDER = "/run/tornet"
_KEY_LIMIT_S = 60
CONSENSUS_LIMIT_S = 240.0
"""Until all are in a consensus: a few votes."""

_COMMON = f"""\
TestingTorNetwork 1
AssumeReachable 1
SocksPort 0
Log notice file {_FOLDER}/{{name}}/log
DataDirectory {_FOLDER}/{{name}}
Nickname {{name}}
Address {{address}}
OutboundBindAddress {{address}}
ORPort {{address}}:{OR_PORT}
ExitRelay 1
IPv6Exit 0
ConfluxEnabled 0
__DisablePredictedCircuits 1
ExitPolicyRejectPrivate 0
ExitPolicy accept *:*
ServerDNSResolvConfFile {_FOLDER}/resolv.conf
ServerDNSDetectHijacking 0
ServerDNSAllowBrokenConfig 1
PidFile {_FOLDER}/{{name}}/pid
RunAsDaemon 1
"""
_AUTHORITY = f"""\
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ContactInfo nobody@example.org
DirPort {AUTHORITY}:{DIR_PORT}
V3AuthVotingInterval {VOTING_S}
V3AuthVoteDelay {DELAY_S}
V3AuthDistDelay {DELAY_S}
V3AuthNIntervalsValid 30
TestingV3AuthInitialVotingInterval {VOTING_S}
TestingV3AuthInitialVoteDelay {DELAY_S}
TestingV3AuthInitialDistDelay {DELAY_S}
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
"""
_WAIT = """
import sys, time, urllib.request
url, routers = sys.argv[1:]
while True:
    try: consensus = urllib.request.urlopen(url, timeout=5).read()
    except OSError: consensus = b""
    if consensus.count(b"\\nr ") == int(routers): break
    time.sleep(0.5)
"""
"""Until a consensus names so many routers (dir-spec §3.4)."""


async def start_network(world: World) -> str:
    """Start all of it, and return when all are in its consensus; what a client's configuration must say.

    A client that finds no consensus, and is asked for connections all the time, asks for one again only after minutes.
    """
    members = {"authority": AUTHORITY, **{f"relay{number}": address for number, address in enumerate(RELAYS, 1)}}
    keys = f"{_FOLDER}/authority/keys"
    folders = " ".join([keys, *(f"{_FOLDER}/{name}" for name in members)])
    addresses = "".join(f" && ip address add {address}/32 dev lo" for address in members.values())
    await sh(world.daemon, world.name, f"mkdir -p -m 700 {folders} && chmod 700 {_FOLDER}/*{addresses}", user="root")
    for name, bits in (("authority_identity_key", 3072), ("authority_signing_key", 2048)):
        await _put(world, f"{keys}/{name}", _rsa_key(bits))
    await _put(world, f"{_FOLDER}/resolv.conf", f"nameserver {WEB}\n".encode())
    await sh(
        world.daemon,
        world.name,
        f"cd {keys} && chmod 600 * && tor-gencert -r -i authority_identity_key -s authority_signing_key"
        " -c authority_certificate -m 1",
        user="root",
    )
    identity = await sh(
        world.daemon, world.name, f"sed -n 's/^fingerprint //p' {keys}/authority_certificate", user="root"
    )
    alone = _COMMON.format(name="authority", address=AUTHORITY) + _AUTHORITY
    unknown = f"DirAuthority authority orport={OR_PORT} v3ident={identity} {AUTHORITY}:{DIR_PORT} {'F' * 40}\n"
    await _put(world, f"{_FOLDER}/authority.conf", (alone + unknown).encode())
    listed = await sh(
        world.daemon,
        world.name,
        f"tor -f {_FOLDER}/authority.conf --quiet --list-fingerprint | tail -1 | cut -d' ' -f2- | tr -d ' '",
        user="root",
    )
    directory = unknown.replace("F" * 40, listed)
    for name, address in members.items():
        text = _COMMON.format(name=name, address=address) + directory + (_AUTHORITY if name == "authority" else "")
        await _put(world, f"{_FOLDER}/{name}.conf", text.encode(), f"tor -f {_FOLDER}/{name}.conf --quiet")
    url = f"http://{AUTHORITY}:{DIR_PORT}/tor/status-vote/current/consensus-microdesc"
    wait = shlex.join(["python3", "-c", _WAIT, url, str(len(members))])
    ready = await run(world.daemon, world.name, wait, timeout_s=CONSENSUS_LIMIT_S)
    assert ready.code == 0, ready.err
    # A client asks the relays for what the consensus names, and one that is told "not found" asks again much later.
    served = [f"{_FOLDER}/{name}/cached-{part}" for name in members for part in ("microdesc-consensus", "microdescs*")]
    have = " && ".join(f"cat {path} 2>/dev/null | grep -q ." for path in served)
    caches = await run(
        world.daemon, world.name, f"until {have}; do sleep 0.5; done", timeout_s=CONSENSUS_LIMIT_S, user="root"
    )
    assert caches.code == 0, caches.err
    return f"TestingTorNetwork 1\n{directory}"


def _rsa_key(bits: int) -> bytes:
    """A private key in PEM."""
    command = ["openssl", "genrsa", "-traditional", str(bits)]
    return subprocess.run(command, check=True, capture_output=True, timeout=_KEY_LIMIT_S).stdout


async def _put(world: World, path: str, content: bytes, then: str = "true") -> None:
    result = await run(world.daemon, world.name, f"cat > {path} && {then}", user="root", stdin=content)
    assert result.code == 0, result.err
