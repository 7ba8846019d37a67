"""The host's end of an agent's channel, as simple as can be: a bare mux, keys, a control channel that a test speaks."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from insula_proto import qrexec, qubesdb
from insula_proto.mux import HOST, Mux
from insula_proto.mux_events import DataReceived, FinReceived, StreamOpened, StreamReset, current
from insula_proto.qrexec import Message
from insula_proto.qrexec_channel import DaemonControl
from insula_proto.qubesdb import KeyServer

PATIENCE_S = 120.0
CLIENT_VM = "import sys; from insula_agent.client_vm import main; sys.exit(main())"
SOURCES = Path(qrexec.__file__).parents[1]


class Host:
    """Runs on the test's thread: it does something only while a test waits for something."""

    def __init__(self, channel: socket.socket, version: int = qrexec.VERSION) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._version = version
        self.keys: dict[str, bytes] = {"/name": b"work"}
        self.mux = Mux(HOST)
        self.received: dict[int, bytes] = {}
        """By data stream."""
        self.finished: set[int] = set()
        self.is_read = True
        """Whether what comes on data streams is granted again."""
        self.reset: set[int] = set()
        self.messages: list[Message] = []
        self._key_server: tuple[int, KeyServer] | None = None
        self.control = DaemonControl(version, may_withdraw=True)
        self._control_stream = 0

    def begin(self) -> None:
        """Greet the agent, as a session does that has just started."""
        self.messages.clear()
        self.mux.start()

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"nothing came: {self.messages} {self.reset}"
            self.turn(0.05)

    def wait_ready(self) -> None:
        self.wait_for(lambda: self.control.version is not None)

    def turn(self, timeout: float) -> None:
        """Exchange what there is; wait at most so long for something."""
        with selectors.DefaultSelector() as selector:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.mux.queued else 0)
            selector.register(self._channel, events)
            selector.select(timeout)
        try:
            while self.mux.queued:
                self.mux.sent(self._channel.send(b"".join(self.mux.data_to_send())))
        except BlockingIOError:
            pass
        try:
            data = self._channel.recv(1 << 18)
        except BlockingIOError:
            return
        for event in current(self.mux.receive(data)):
            if isinstance(event, StreamOpened):
                self._opened(event)
            elif isinstance(event, DataReceived):
                self._data(event.stream, bytes(event.data))
            elif isinstance(event, FinReceived):
                self.finished.add(event.stream)
            elif isinstance(event, StreamReset):
                self.reset.add(event.stream)

    def _opened(self, event: StreamOpened) -> None:
        if event.port == qubesdb.PORT:
            self._key_server = event.stream, KeyServer(self.keys, lambda path, value: False)
        elif event.port == qrexec.CONTROL_PORT:
            self.control = DaemonControl(self._version, may_withdraw=True)
            self._control_stream = event.stream

    def _data(self, stream: int, data: bytes) -> None:
        if self._key_server is not None and stream == self._key_server[0]:
            self._key_server[1].receive(data)
            self.mux.send(stream, self._key_server[1].take_output())
        elif stream == self._control_stream:
            for message in self.control.receive(data):
                if isinstance(message, qrexec.Hello):
                    self.mux.send(stream, self.control.answer())
                else:
                    self.messages.append(message)
        else:
            self.received[stream] = self.received.get(stream, b"") + data
            if not self.is_read:
                return
        self.mux.consumed(stream, len(data))

    def say(self, data: bytes) -> None:
        """Send on the control channel."""
        self.mux.send(self._control_stream, data)
        self.wait_for(lambda: not self.mux.queued)

    def open(self, port: int) -> int:
        """Open a data stream."""
        return self.mux.open(port)

    def send(self, stream: int, data: bytes) -> None:
        """Send all, however long the agent takes."""
        while data:
            self.wait_for(lambda: self.mux.writable(stream))
            size = min(len(data), self.mux.writable(stream))
            self.mux.send(stream, data[:size])
            data = data[size:]
            self.turn(0)


class Agent:
    """A real agent process and the files it is given."""

    def __init__(self, folder: Path, channel: socket.socket) -> None:
        for name in ("keys", "rpc", "rpc-config"):
            (folder / name).mkdir(exist_ok=True)
        self.folder = folder
        self._programs: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        self.socket = folder / "qubes" / "agent.sock"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-S", "-E", "-m", "insula_agent", "--device", f"fd:{channel.fileno()}"),
                *("--own-user", "--no-identity", "--keys", str(folder / "keys"), "--agent-socket", str(self.socket)),
            ],
            cwd=SOURCES,
            env={
                "PATH": os.environ["PATH"],
                "QREXEC_SERVICE_PATH": f"{folder}/rpc",
                "QUBES_RPC_CONFIG_PATH": f"{folder}/rpc-config",
            },
            pass_fds=[channel.fileno()],
        )

    def program(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start ``qrexec-client-vm`` as a program of this qube does."""
        command = [sys.executable, "-S", "-c", CLIENT_VM, f"--agent-socket={self.socket}", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        program = subprocess.Popen(command, cwd=SOURCES, **{**pipes, **options})
        self._programs.append(program)
        return program

    def end(self) -> None:
        for connection in self._connections:
            connection.close()
        for program in self._programs:
            program.kill()
            program.wait(PATIENCE_S)
            for pipe in (program.stdin, program.stdout, program.stderr):
                if pipe is not None:
                    pipe.close()
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def connect(self) -> socket.socket:
        """Connect to the agent's socket as some program."""
        connection = socket.socket(socket.AF_UNIX)
        self._connections.append(connection)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.socket))
        return connection


@contextmanager
def agent_and_host(folder: Path, version: int = qrexec.VERSION) -> Iterator[tuple[Agent, Host]]:
    """Both, not greeted yet; gone afterwards."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            agent = Agent(folder, theirs)
        try:
            yield agent, Host(ours, version)
        finally:
            agent.end()
