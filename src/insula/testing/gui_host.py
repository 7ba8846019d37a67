"""``python -m insula.testing.gui_host POLICY CONFIGURE CHANNEL MEMORY …``: the daemon's part of windows, for tests.

It starts the processes as the daemon would, in their sandboxes, prints their process ids on a line, then what the user
would be told, a line each, and ends when the last one has ended. CONFIGURE is JSON; CHANNEL and MEMORY are numbers of
descriptors. POLICY: ``allow`` or ``deny``, for all text between qubes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence

import msgspec

from insula.gui.control import Configure
from insula.gui.launcher import GuiLauncher


def _notify(qube: str | None, text: str) -> None:
    print(f"{qube or 'clipboard'}: {text}", flush=True)


async def serve(policy: str, qubes: Sequence[tuple[str, str, str]]) -> None:
    async def judge(source: str, target: str, argument: str) -> bool:
        print(f"judged: {source} to {target}{argument and ', ' + argument}", flush=True)
        return policy == "allow"

    async with GuiLauncher(judge, _notify) as launch:
        running = []
        for configure, channel, memory in qubes:
            with socket.socket(fileno=int(channel)) as connection:
                decoded = msgspec.json.decode(configure, type=Configure)
                running.append(await launch(decoded, connection, int(memory)))
            os.close(int(memory))
        print(*(gui.pid for gui in running), flush=True)
        for gui in running:
            print(f"{gui.name} ended: {await gui.wait_closed()}", flush=True)


if __name__ == "__main__":
    given = sys.argv[2:]
    groups = [tuple(given[at : at + 3]) for at in range(0, len(given), 3)]
    asyncio.run(serve(sys.argv[1], groups))  # type: ignore[arg-type] # of three
