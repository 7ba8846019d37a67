"""``python -m insula.testing.gui_host QUBE COLOUR CHANNEL MEMORY``: the daemon's part for a process that shows windows.

It starts the process as the daemon would, in its sandbox, prints its process id, then what it says, and ends with its
exit code. For tests of windows; the two numbers are descriptors. What is copied is printed, and what is pasted is
:data:`PASTED`, whoever asks: who may is not decided here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from insula.gui import clip_file, control
from insula.gui.control import Configure, CopyOffered, Deliver, FromGui, PasteAsked
from insula.gui.spawn import GUI_PROGRAM, spawn_gui
from insula.preload.forks import PreloadedParent

QID = 7
PASTED = "pasted by the user: \N{SNOWMAN}"
_LIMIT = 64000
_STDERR = 2


async def serve(qube: str, colour: int, channel: int, memory: int) -> int:
    async with PreloadedParent([GUI_PROGRAM]) as parent:
        process, daemon = await spawn_gui(parent, QID, Configure(qube, colour), (_STDERR, channel, memory))
        socket.socket(fileno=channel).close()
        print(process.pid, flush=True)
        with daemon:
            loop = asyncio.get_running_loop()
            while True:
                await _readable(loop, daemon)
                data, descriptors, _, _ = socket.recv_fds(daemon, control.MAX_MESSAGE, 1)
                if not data:
                    break
                _answer(daemon, control.decode_from_gui(data), descriptors)
        return await process.wait()


async def _readable(loop: asyncio.AbstractEventLoop, daemon: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_reader(daemon, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(daemon)


def _answer(daemon: socket.socket, message: FromGui, descriptors: list[int]) -> None:
    print(message, flush=True)
    if isinstance(message, CopyOffered):
        print("copied:", ascii(clip_file.read(descriptors[0], _LIMIT).decode()), flush=True)
        os.close(descriptors[0])
    elif isinstance(message, PasteAsked):
        clip = clip_file.make(PASTED.encode())
        socket.send_fds(daemon, [control.encode(Deliver(message.number))], [clip])
        os.close(clip)


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(sys.argv[1], int(sys.argv[2], 16), int(sys.argv[3]), int(sys.argv[4]))))
