"""A real session process with a real agent, in this machine instead of a guest: for tests of what runs commands.

Commands are run as the user of the test, in this machine's file system.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

from insula.rpc.launcher import RunningSession, SessionLauncher

READY_TIMEOUT_S = 120.0


def _services() -> Path:
    """The agent's services, found without importing it."""
    package = importlib.util.find_spec("insula_agent")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("rpc")


class LocalGuest:
    """Serves ``rpc_socket``, whose folder must exist. :meth:`end` leaves nothing."""

    def __init__(self, rpc_socket: Path, keys: Path) -> None:
        """``keys``: a folder for the agent's files that need not exist."""
        self._rpc_socket = rpc_socket
        self._keys = keys
        self._launcher = SessionLauncher()
        self._session: RunningSession | None = None
        self._agent: subprocess.Popen[bytes] | None = None

    async def boot(self) -> None:
        """Start both; returns when commands can be run."""
        ours, theirs = socket.socketpair()
        self._session = await self._launcher(
            name="work",
            qid=1,
            channel=ours,
            rpc_socket=self._rpc_socket,
            keys={"/name": "work", "/default-user": getpass.getuser()},
        )
        self._agent = subprocess.Popen(  # noqa: ASYNC220 - starting it does not wait for it
            [
                *(sys.executable, "-m", "insula_agent", "--own-user", "--no-identity"),
                *("--keys", str(self._keys), "--device", f"fd:{theirs.fileno()}"),
                *("--agent-socket", str(self._keys.with_name("agent.sock"))),
            ],
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "QREXEC_SERVICE_PATH": str(_services()),
                "QUBES_RPC_CONFIG_PATH": str(self._keys),
            },
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        async with asyncio.timeout(READY_TIMEOUT_S):
            await self._session.wait_ready()

    async def end(self) -> None:
        """As a machine that is switched off."""
        if self._agent is not None:
            self._agent.kill()
            await asyncio.to_thread(self._agent.wait)
        if self._session is not None:
            await self._session.close()
        await self._launcher.close()
