"""``python -m insula.testing.gui_host QUBE COLOUR CHANNEL MEMORY``: the daemon's part for a process that shows windows.

It starts the process as the daemon would, in its sandbox, prints its process id, then what it says, and ends with its
exit code. For tests of windows; the two numbers are descriptors.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from insula.gui import control
from insula.gui.control import Configure
from insula.gui.spawn import GUI_PROGRAM, spawn_gui
from insula.preload.forks import PreloadedParent

QID = 7
_STDERR = 2


async def serve(qube: str, colour: int, channel: int, memory: int) -> int:
    async with PreloadedParent([GUI_PROGRAM]) as parent:
        process, daemon = await spawn_gui(parent, QID, Configure(qube, colour), (_STDERR, channel, memory))
        socket.socket(fileno=channel).close()
        print(process.pid, flush=True)
        with daemon:
            loop = asyncio.get_running_loop()
            while data := await loop.sock_recv(daemon, control.MAX_MESSAGE):
                print(control.decode_from_gui(data), flush=True)
        return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(sys.argv[1], int(sys.argv[2], 16), int(sys.argv[3]), int(sys.argv[4]))))
