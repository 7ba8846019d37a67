"""Unix sockets: paths longer than the 107 bytes an address holds, by way of the folder's descriptor; the peer's end."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_ADDRESS = 107
"""Bytes of a path in ``sockaddr_un`` (unix(7))."""


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield an address for ``path`` to bind or connect to; good while the context lasts.

    :raise OSError: its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextmanager
def hang_up(connection: socket.socket) -> Iterator[asyncio.Future[None]]:
    """A future that is done once the peer closed its socket.

    Reading cannot tell (the client half-closed long ago, so there is end of file all the time), and a stream may
    have nothing to write for hours. The kernel tells by EPOLLHUP, which asyncio does not ask for; an epoll of its
    own does, and is itself a descriptor the loop can watch.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    with select.epoll() as watch:
        watch.register(connection.fileno(), 0)

        def notice() -> None:
            loop.remove_reader(watch.fileno())
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(watch.fileno(), notice)
        try:
            yield gone
        finally:
            loop.remove_reader(watch.fileno())
            gone.cancel()
