"""The way out of one machine: a cable on one side, ordinary sockets of an ordinary program on the other.

    guest ⇄ VMM ⇄ cable ⇄ this process ⇄ sockets of the host

A TCP/IP stack (libslirp) turns the guest's frames into sockets and back. No interface, route or rule of the host is
touched, no root is needed. Before the first frame is read the process is in its sandbox: an empty root but for the
address of the host's name server, namespaces of its own except the network's, no capability, system calls by a list on
which nothing listens and nothing binds.

**Nothing is lost on the way to the guest.** Frames that the cable does not take at once wait here; while
:data:`FULL` bytes wait, nothing is read from the host's sockets and no timer of the stack goes on, so the senders
outside are slowed down by their own TCP. That a guest stands still or is slow costs time and no packets.

Started with descriptors by :mod:`insula.hal.qemu.outside`; ends with the cable.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

from insula.net import heartbeat, resolver
from insula.net.cable import FrameDecoder, encode
from insula.net.screen import may_pass
from insula.net.slirp import Slirp
from insula.preload import sandbox, seccomp, syscalls
from insula.preload.syscalls import Namespaces
from insula_proto.errors import RemoteProtocolError

READY = b"ready\n"
"""Last word to who started it: the process is in its sandbox."""
NAME = "insula-uplink"
FULL = 256 * 1024
"""Bytes that wait for the guest, from which on nothing more is fetched for it."""
MAX_WAITING = 64 << 20
"""Bytes that wait for the guest at most: the windows of all connections of a guest that takes nothing. Beyond, frames
are dropped, as a full interface would."""
PIECE = 256 * 1024
"""Bytes read from or written to the cable at once."""
FILES = 2048
"""RLIMIT_NOFILE: connections at the same time, those to the name server included."""
ADDRESS_SPACE = 1 << 30
"""RLIMIT_AS in bytes: two buffers of 128 KiB for each connection, and what waits."""
TURN_MS = int(heartbeat.EVERY_S * 1000)


class Uplink:
    """The loop, on a socket that leads to a machine's interface."""

    def __init__(self, cable: socket.socket, pulse: int) -> None:
        """
        :param pulse: descriptor of the file that is written for others to see (:mod:`insula.net.heartbeat`).
        :raise OSError: libslirp cannot be used.
        """
        cable.setblocking(False)
        self._cable = cable
        self._pulse = pulse
        self._next_beat = 0.0
        self._decoder = FrameDecoder()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        """Bytes in ``_waiting``."""
        self._slirp = Slirp(self._send)

    def run(self) -> None:
        """Return when the machine's end of the cable is closed. :raise RemoteProtocolError: no frames come over it."""
        while self._turn():
            pass

    def _send(self, frame: bytes) -> None:
        if self._size + len(frame) <= MAX_WAITING:
            data = encode(frame)
            self._waiting.append(data)
            self._size += len(data)

    def _turn(self) -> bool:
        """False: the cable is gone."""
        self._beat()
        poll = select.poll()
        has_room = self._size < FULL
        timeout_ms = TURN_MS
        if has_room:
            descriptors, timeout_ms = self._slirp.descriptors(TURN_MS)
            for fd, flags in descriptors:
                poll.register(fd, flags)
        cable = self._cable.fileno()
        # More frames of the guest make more answers; at the limit they wait, too.
        reads = select.POLLIN if self._size < MAX_WAITING // 2 else 0
        poll.register(cable, reads | (select.POLLOUT if self._waiting else 0))
        events = dict(poll.poll(timeout_ms))
        ours = events.pop(cable, 0)
        if ours & ~select.POLLOUT and not self._receive():
            return False
        if has_room:
            self._slirp.turn(events)
        return self._flush()

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + heartbeat.EVERY_S
            heartbeat.beat(self._pulse)

    def _receive(self) -> bool:
        try:
            data = self._cable.recv(PIECE)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not data:
            return False
        for frame in self._decoder.receive(data):
            if may_pass(frame):
                self._slirp.input(frame)
        return True

    def _flush(self) -> bool:
        waiting = self._waiting
        while waiting:
            parts, size = [], 0
            while waiting and size < PIECE:
                size += len(waiting[0])
                parts.append(waiting.popleft())
            data = b"".join(parts)
            try:
                sent = self._cable.send(data)
            except BlockingIOError:
                sent = 0
            except ConnectionError:
                return False
            self._size -= sent
            if sent < size:
                waiting.appendleft(data[sent:])
                return True
        return True


def enter_sandbox(uid: int | None, report: int) -> None:
    """Return in a process that is shut in; the one that called it has ended by then.

    :param uid: user and group to become; None: who we are.
    :param report: gets the process's number, a line.
    :raise OSError: a step failed; nothing may run.
    """
    server = resolver.host_server()
    names = b"" if server is None else f"nameserver {server}\n".encode("ascii")
    if uid is not None:
        sandbox.become(uid)
    sandbox.leave_host(sandbox.namespaces() & ~Namespaces.NET, (), files=[(str(resolver.RESOLV_CONF), names)])
    child = os.fork()
    if child:
        os.write(report, f"{child}\n".encode("ascii"))
        os._exit(os.EX_OK)
    syscalls.set_name(NAME)
    sandbox.give_up_rights(sandbox.Limits(FILES, ADDRESS_SPACE, heartbeat.SIZE))
    syscalls.set_dumpable(uid is None)
    sandbox.end_growth()
    syscalls.install_filter(seccomp.assemble(os.uname().machine, reaches_network=True))


def main(arguments: Sequence[str]) -> int:
    """``CABLE PULSE REPORT [UID]``: numbers of descriptors, and of the user to become."""
    cable, pulse, report, *uid = map(int, arguments)
    try:
        uplink = Uplink(socket.socket(fileno=cable), pulse)
        enter_sandbox(uid[0] if uid else None, report)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    os.write(report, READY)
    os.close(report)
    try:
        uplink.run()
    except RemoteProtocolError as error:
        print(f"what comes over the cable are no frames: {error}", file=sys.stderr)
        return 1
    return 0
