"""Where the user's sound server listens (PulseAudio, or PipeWire in its place), and what proves who we are there.

It is looked for as its own programs look for it, in the environment of a desktop, but only on this machine: the daemon
makes no connection to a network.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from insula.rpc.sockets import address
from insula.sound.native import COOKIE_SIZE
from insula.sound.stream import greeting

SOCKET = "pulse/native"
CONNECT_S = 5.0


class NoSoundServer(OSError):
    """None listens on this desktop."""


def places(environment: Mapping[str, str]) -> Iterator[Path]:
    """Sockets to be tried, best first."""
    for word in environment.get("PULSE_SERVER", "").split():
        # ``{machine}unix:/path``, or only the path; what leads to a network is passed over.
        place = word.rpartition("}")[2].removeprefix("unix:")
        if place.startswith("/"):
            yield Path(place)
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, SOCKET)


def cookie(place: Path) -> bytes:
    """That of the user whose socket it is, where we can read it; most servers go by the user alone."""
    try:
        home = Path(pwd.getpwuid(place.stat().st_uid).pw_dir)
    except (KeyError, OSError):
        return b""
    for path in (home / ".config/pulse/cookie", home / ".pulse-cookie"):
        try:
            return path.read_bytes()[:COOKIE_SIZE]
        except OSError:
            continue
    return b""


async def connect(environment: Mapping[str, str]) -> socket.socket:
    """A connection, the caller's, greeted. :raise NoSoundServer: nobody listens."""
    loop = asyncio.get_running_loop()
    for place in places(environment):
        if not place.is_socket():
            continue
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(CONNECT_S):
                with address(place) as where:
                    await loop.sock_connect(connection, where)
            _greet(connection, cookie(place))
        except OSError:  # one that has ended leaves its socket
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise NoSoundServer("there is no sound server on this desktop")


def _greet(connection: socket.socket, proof: bytes) -> None:
    """Say who we are, outright: the kernel says so by itself only once the server has asked it to, which is a moment
    after the server took the connection. (One that is new has room for it.) :raise OSError:"""
    who = struct.pack("=iII", os.getpid(), os.getuid(), os.getgid())
    connection.sendmsg([greeting(proof)], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])


def describe(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where one seems to listen; None: nowhere."""
    return next((str(place) for place in places(environment) if place.is_socket()), None)
