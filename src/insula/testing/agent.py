"""A qube without a machine: a real agent process and a real session process, joined by a socket pair.

Both ends of the pair are kept here too, so that neither process learns from the socket that the other has gone: what a
virtio-serial port at its worst is like.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import insula_proto
from insula.hal import frames
from insula.rpc.control import FromSession
from insula.rpc.launcher import RunningSession, SessionLauncher
from insula_proto import limits

READY_TIMEOUT = 120.0
AGENT_FOLDER = Path(insula_proto.__file__ or "").parents[1] / "insula_agent"


def own_user() -> str:
    """The only user an agent outside a qube runs commands as."""
    return pwd.getpwuid(os.geteuid()).pw_name


class FakeQube:
    """``folder`` holds ``rpc.sock``, ``keys/`` (as shown by the agent), ``rpc/`` and ``rpc-config/``."""

    def __init__(self, folder: Path, name: str = "work", qid: int = 7) -> None:
        self.folder = folder
        self.name = name
        self.qid = qid
        self.rpc_socket = folder / "rpc.sock"
        self.agent_socket = folder / "agent.sock"
        """Where programs of the qube ask for services of others."""
        self.host_end, self.guest_end = socket.socketpair()
        self.keys: dict[str, str] = {"/name": name, "/default-user": own_user()}
        self.messages: list[FromSession] = []
        self.launcher = SessionLauncher()
        self.session: RunningSession | None = None
        self.agent: asyncio.subprocess.Process | None = None
        self.python = [sys.executable]
        self.memory: int | None = None
        """What the two processes share, once the session has asked for it (:meth:`plug_memory`)."""
        for part in ("devices", "keys", "rpc", "rpc-config"):
            (folder / part).mkdir()

    async def start_agent(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "QREXEC_SERVICE_PATH": f"{self.folder}/rpc:{AGENT_FOLDER}/rpc",
            "QUBES_RPC_CONFIG_PATH": f"{self.folder}/rpc-config",
        }
        guest_end = self.guest_end.dup()
        with guest_end:
            self.agent = await asyncio.create_subprocess_exec(
                *self.python, "-S", "-E", "-m", "insula_agent", "--device", f"fd:{guest_end.fileno()}",
                "--own-user", "--no-identity", "--keys", str(self.folder / "keys"),
                "--agent-socket", str(self.agent_socket), "--devices", str(self.folder / "devices"),
                cwd=AGENT_FOLDER.parent, env=environment, pass_fds=[guest_end.fileno()],
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    async def start_session(self, on_message: Callable[[str, FromSession], None] | None = None) -> RunningSession:
        def keep(name: str, message: FromSession) -> None:
            self.messages.append(message)
            if on_message is not None:
                on_message(name, message)

        channel = self.host_end.dup()
        self.session = await self.launcher(
            name=self.name,
            qid=self.qid,
            channel=channel,
            rpc_socket=self.rpc_socket,
            keys=self.keys,
            on_message=keep,
            open_memory=self.plug_memory,
        )
        return self.session

    async def plug_memory(self) -> int:
        """What a machine's driver does: give the machine memory, once, and return a descriptor of it."""
        if self.memory is None:
            self.memory = frames.make(limits.BULK_SIZE, frames.BULK_NAME)
            device = self.folder / "devices" / "0000:06:00.0"
            device.mkdir()
            for name, text in (("vendor", "0x1af4"), ("device", "0x1110"), ("enable", "0")):
                (device / name).write_text(f"{text}\n")
            (device / "resource2").symlink_to(f"/proc/{os.getpid()}/fd/{self.memory}")
        return os.dup(self.memory)

    async def ready(self) -> None:
        assert self.session is not None
        async with asyncio.timeout(READY_TIMEOUT):
            await self.session.wait_ready()

    async def kill_agent(self, number: int = signal.SIGKILL) -> int:
        """End the agent and return its wait status."""
        assert self.agent is not None
        if self.agent.returncode is None:
            self.agent.send_signal(number)
        agent, self.agent = self.agent, None
        return await agent.wait()

    async def kill_session(self) -> str:
        """``kill -9`` what the daemon started; return why it ended as seen by the daemon."""
        assert self.session is not None
        os.kill(self.session.pid, signal.SIGKILL)
        session, self.session = self.session, None
        return await session.wait_closed()

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()
        if self.agent is not None:
            # SIGTERM: the agent ends the commands it still runs.
            await self.kill_agent(signal.SIGTERM)
        await self.launcher.close()
        self.host_end.close()
        self.guest_end.close()
        if self.memory is not None:
            os.close(self.memory)

    def add_service(self, name: str, text: str, *, settings: str | None = None, mode: int = 0o755) -> None:
        path = self.folder / "rpc" / name
        path.write_text(text)
        path.chmod(mode)
        if settings is not None:
            (self.folder / "rpc-config" / name).write_text(settings)


@asynccontextmanager
async def fake_qube(folder: Path) -> AsyncIterator[FakeQube]:
    """A qube whose agent is ready; everything of it is gone afterwards."""
    qube = FakeQube(folder)
    try:
        await qube.start_session()
        await qube.start_agent()
        await qube.ready()
        yield qube
    finally:
        await qube.close()
