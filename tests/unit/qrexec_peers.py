"""Small peers of the published executables: an agent and data channels over unix-socket vchan, a qubesd, a policy."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from insula_proto import qrexec
from insula_proto.vchan import Place

WAIT_S = 120.0
"""For what another process is to do; a busy machine may need some of it."""
PORT = 513
DOMAIN, NAME, UUID = 42, "work", "11111111-0000-0000-0000-000000000000"
PROGRAMS = Path(sys.executable).parent

Raw = tuple[int, bytes]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Peer:
    """One end of a connection that carries messages; closed with its world at the latest."""

    opened: ClassVar[list[Peer]] = []

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_S)
        self.connection = connection
        self.opened.append(self)

    def send(self, kind: int, body: bytes = b"") -> None:
        self.connection.sendall(qrexec.HEADER.pack(kind, len(body)) + body)

    def receive(self) -> Raw:
        kind, length = qrexec.HEADER.unpack(self._exactly(qrexec.HEADER.size))
        return kind, self._exactly(length)

    def rest(self) -> list[Raw]:
        """All messages up to the end; of data, one for each run of one type."""
        found: list[Raw] = []
        while (message := self._next()) is not None:
            if found and found[-1][0] == message[0] and found[-1][1] and message[1]:
                found[-1] = message[0], found[-1][1] + message[1]
            else:
                found.append(message)
        return found

    def hello(self, version: int = qrexec.VERSION) -> None:
        """Both HELLOs; ours first."""
        self.send(qrexec.HELLO, struct.pack("<I", version))
        assert self.receive() == (qrexec.HELLO, struct.pack("<I", version))

    def close(self) -> None:
        self.connection.close()

    def _next(self) -> Raw | None:
        first = self.connection.recv(1)
        if not first:
            return None
        kind, length = qrexec.HEADER.unpack(first + self._exactly(qrexec.HEADER.size - 1))
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            assert part, f"the connection ended after {len(data)} of {size} bytes"
            data += part
        return data


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    listener.settimeout(WAIT_S)
    return listener


def connect(path: Path) -> Peer:
    connection = socket.socket(socket.AF_UNIX)
    end = time.monotonic() + WAIT_S
    while True:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < end, f"nobody serves {path}"
            time.sleep(0.005)
        else:
            return Peer(connection)


class World:
    """A folder with everything in it: vchans, daemons' sockets, services of the host, a policy program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = folder / "rpc"
        self.config = folder / "rpc-config"
        for path in (self.services, self.config):
            path.mkdir()
        self.host = Place(str(folder), 0)
        self.policy_program = folder / "policy-program"
        self.deny()
        self.environment = {
            **os.environ,
            "VCHAN_DOMAIN": "0",
            "VCHAN_SOCKET_DIR": str(folder),
            "QREXEC_SERVICE_PATH": str(self.services),
            "QUBES_RPC_CONFIG_PATH": str(self.config),
            "INSULA_POLICY_SOCKET": str(folder / "policy.sock"),
            "INSULA_POLICY_AGENT_SOCKET": str(folder / "policy-agent.sock"),
            "INSULA_QUBESD_SOCKET": str(folder / "qubesd.sock"),
            "INSULA_QUBESD_INTERNAL_SOCKET": str(folder / "qubesd.internal.sock"),
            "INSULA_QREXEC_LOG_DIR": str(folder),
            "INSULA_QREXEC_SOCKET_DIR": str(folder),
        }

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[World]:
        """In a folder whose path is short enough for sockets."""
        with tempfile.TemporaryDirectory(prefix="q-") as folder:
            yield cls(Path(folder))
            while Peer.opened:
                Peer.opened.pop().close()

    def script(self, path: Path, text: str) -> Path:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def deny(self) -> None:
        self.script(self.policy_program, "echo result=deny; exit 1")

    def allow(self, target: str, *, asked: str = "", user: str = "DEFAULT", autostart: bool = True) -> None:
        """Let the policy program allow everything, to ``target``."""
        lines = {"result": "allow", "user": user, "target": target, "autostart": autostart}
        lines["requested_target"] = asked or target
        self.script(self.policy_program, "\n".join(f"echo '{key}={value}'" for key, value in lines.items()))

    @contextmanager
    def daemon(self, *options: str, domain: int = DOMAIN, name: str = NAME) -> Iterator[subprocess.Popen[bytes]]:
        arguments = [
            str(PROGRAMS / "qrexec-daemon"),
            f"--uuid={UUID}",
            f"--socket-dir={self.folder}",
            f"--policy-program={self.policy_program}",
            "--direct",
            *options,
            str(domain),
            name,
        ]
        with subprocess.Popen(arguments, env=self.environment) as process:
            try:
                yield process
            finally:
                process.terminate()

    @contextmanager
    def client(self, *arguments: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
        program = [str(PROGRAMS / "qrexec-client"), f"--socket-dir={self.folder}", *arguments]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **streams}
        with subprocess.Popen(program, env=self.environment, **streams) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def agent(self, domain: int = DOMAIN) -> Iterator[Callable[[], Peer]]:
        """A served control channel; call what this gives once to accept the daemon's connection."""
        with listen(Path(Place(str(self.folder), domain).served_for(0, qrexec.CONTROL_PORT))) as listener:
            accepted: list[Peer] = []

            def accept() -> Peer:
                connection, _ = listener.accept()
                listener.close()
                accepted.append(Peer(connection))
                return accepted[-1]

            yield accept
            for peer in accepted:
                peer.close()

    def local(self, name: str = str(DOMAIN)) -> Peer:
        """A client of a daemon, both HELLOs said."""
        peer = connect(self.folder / f"qrexec.{name}")
        assert peer.receive() == (qrexec.HELLO, struct.pack("<I", 3))
        peer.send(qrexec.HELLO, struct.pack("<I", 3))
        return peer


def trigger(target: bytes, ident: bytes, service: bytes, source: bytes = b"") -> bytes:
    """Body of TRIGGER_SERVICE4."""
    return struct.pack("<64s64s32s", source, target, ident) + service + b"\0"


def params(domain: int, port: int, rest: bytes = b"") -> bytes:
    return struct.pack("<II", domain, port) + rest


def ident(text: bytes) -> bytes:
    return text.ljust(32, b"\0")


def exit_code(code: int) -> Raw:
    return qrexec.EXIT_CODE, struct.pack("<i", code)


class Called:
    """The daemon of a qube, and the qube at the other end of the data channel."""

    def __init__(self, world: World, listener: socket.socket, domain: int) -> None:
        self._world = world
        self.listener = listener
        self._domain = domain

    def answer(self) -> tuple[int, bytes]:
        """Take a client's request and say where; return the request."""
        kind, body = self.hear()
        self.client.send(kind, params(self._domain, PORT))
        return kind, body

    def hear(self) -> tuple[int, bytes]:
        """Take what a client says that needs no answer."""
        connection, _ = self.listener.accept()
        self.client = Peer(connection)
        self.client.hello(3)
        return self.client.receive()

    def channel(self) -> Peer:
        """Be the service end of the data channel, HELLO said."""
        peer = connect(Path(Place(str(self._world.folder), self._domain).served_by(0, PORT)))
        peer.hello()
        return peer


@contextmanager
def qube(world: World, name: str = "work", domain: int = DOMAIN) -> Iterator[Called]:
    with listen(world.folder / f"qrexec.{domain}") as listener:
        (world.folder / f"qrexec.{name}").symlink_to(f"qrexec.{domain}")
        yield Called(world, listener, domain)


class Server:
    """Answers each connection with what ``answer`` makes of all that came on it."""

    def __init__(self, path: Path, answer: Callable[[bytes], bytes]) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._listener = listen(path)
        self._listener.settimeout(None)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while part := connection.recv(65536):
                    request += part
                    if request.startswith(b"source=") and request.endswith(b"\n\n"):
                        break
                self.requests.append(request)
                connection.sendall(self._answer(request))


def system_info(**changes: dict[str, object]) -> bytes:
    """What ``internal.GetSystemInfo`` gives: dom0, work, vault, and dvm, from which disposables are made."""
    names = ("dom0", "work", "vault", "dvm")
    domains: dict[str, dict[str, object]] = {
        name: {
            "tags": [],
            "type": "AppVM",
            "default_dispvm": "dvm",
            "template_for_dispvms": name == "dvm",
            "power_state": "Running",
            "icon": "appvm-red",
            "label": "red",
            "guivm": "dom0",
            "uuid": f"{number}{number}{number}{number}{number}{number}{number}{number}-0000-0000-0000-000000000000",
            "relayvm": None,
            "transport_rpc": None,
            **changes.get(name, {}),
        }
        for number, name in enumerate(names)
    }
    domains["dom0"] |= {"type": "AdminVM", "guivm": None}
    return b"0\0" + json.dumps({"domains": domains}).encode()
