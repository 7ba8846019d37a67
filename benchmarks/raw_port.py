"""The raw channel to compare with: a small Python program in the guest on the port ``insula.gui``, and its host end.

The port belongs to the same virtio-serial controller as ``insula.rpc``, the program reads and writes in the sizes the
port's driver takes; there is no multiplexer, no flow control of ours and no session process between.

A command's streams cross a pipe, the program's bytes need not. So it can also do the least that a command costs: what
a second process writes into a pipe is spliced to the port, what comes from the port is written to a pipe it reads.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from insula.hal.driver import GUI_CHANNEL
from insula.hal.qemu.descriptors import connect
from insula.rpc.client import run_collect
from insula.testing.daemon import DaemonProcess

REQUEST_SIZE = 32
TIMEOUT_S = 120
PIPE_SIZE = 524288

PIECE = 32768
"""Bytes the program writes at once: as many as the port's driver takes."""
SOURCE = f"""
import os, sys
count, block = int(sys.argv[1]), bytes({PIECE})
while count:
    count -= os.write(1, block[:count])
"""
"""The same program as a command: what it writes to the port there it writes to its standard output."""

_PROGRAM = f"""
import fcntl, glob, os, select
for name in glob.glob("/sys/class/virtio-ports/*/name"):
    if open(name).read().strip() == {GUI_CHANNEL!r}:
        port = os.open("/dev/" + name.split("/")[-2], os.O_RDWR)
def read(size):
    data = b""
    while len(data) < size:
        data += os.read(port, size - len(data))
    return data
block = bytes({PIECE})
def pipe():
    ends = os.pipe()
    fcntl.fcntl(ends[1], 1031, {PIPE_SIZE})
    return ends
while True:
    word, count = read({REQUEST_SIZE}).split()
    count = int(count)
    if word == b"echo":
        os.write(port, read(count))
    elif word == b"source":
        while count:
            count -= os.write(port, block[:count])
    elif word == b"sink":
        while count:
            count -= len(os.read(port, min(count, 65536)))
        os.write(port, b"done")
    elif word == b"pipe-source":
        out, into = pipe()
        child = os.fork()
        while not child and count:
            count -= os.write(into, block[:count])
        if not child:
            os._exit(0)
        # All of a pipe at once: the driver counts the pages that are there, not those asked for.
        own_out, own_in = pipe()
        while count:
            waiting = moved = os.splice(out, own_in, min(count, {PIPE_SIZE}))
            count -= moved
            while waiting:
                waiting -= os.splice(own_out, port, waiting)
        os.waitpid(child, 0)
        for fd in (out, into, own_out, own_in):
            os.close(fd)
    elif word == b"pipe-sink":
        out, into = pipe()
        child = os.fork()
        while not child and count:
            count -= len(os.read(out, 131072))
        if not child:
            os._exit(0)
        buffer = memoryview(bytearray(262144))
        pages = [buffer[start:start + 4096] for start in range(0, len(buffer), 4096)]
        os.set_blocking(port, False)
        while count:
            select.select([port], [], [])
            size = os.readv(port, pages)
            count -= size
            while size:
                size -= os.write(into, buffer[:size])
        os.waitpid(child, 0)
        os.close(out)
        os.close(into)
        os.set_blocking(port, True)
        os.write(port, b"done")
    else:
        break
"""


class RawPort:
    """The host's end, connected."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    @classmethod
    @asynccontextmanager
    async def open(cls, daemon: DaemonProcess, qube: str) -> AsyncIterator[RawPort]:
        """Start the program in a running qube and connect to its port."""
        command = f"exec python3 -I -S -c {shlex.quote(_PROGRAM)}"
        program = asyncio.create_task(run_collect(daemon.paths.rpc_socket(qube), command, user="root"))
        channel = connect(daemon.paths.qube(qube) / f"channel-{GUI_CHANNEL}.sock")
        channel.setblocking(True)
        channel.settimeout(TIMEOUT_S)
        port = cls(channel)
        try:
            await asyncio.to_thread(port.echo_seconds)
            yield port
            port._ask("end", 0)
            await program
        finally:
            channel.close()
            program.cancel()

    def _ask(self, word: str, count: int) -> None:
        self._channel.sendall(f"{word} {count}".ljust(REQUEST_SIZE).encode())

    def _receive(self, size: int) -> None:
        buffer = bytearray(262144)
        while size:
            count = self._channel.recv_into(buffer, min(size, len(buffer)))
            if not count:
                raise ConnectionError("the machine closed the port")
            size -= count

    def echo_seconds(self) -> float:
        """Round trip of one byte."""
        self._ask("echo", 1)
        begin = time.perf_counter()
        self._channel.sendall(b"x")
        self._receive(1)
        return time.perf_counter() - begin

    def from_guest_seconds(self, size: int, *, piped: bool = False) -> float:
        begin = time.perf_counter()
        self._ask("pipe-source" if piped else "source", size)
        self._receive(size)
        return time.perf_counter() - begin

    def to_guest_seconds(self, size: int, *, piped: bool = False) -> float:
        begin = time.perf_counter()
        self._ask("pipe-sink" if piped else "sink", size)
        block = bytes(65536)
        for _ in range(size // len(block)):
            self._channel.sendall(block)
        self._receive(4)
        return time.perf_counter() - begin
