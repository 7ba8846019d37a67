"""Services and commands of the host itself (reference: qrexec, §5): found as in a qube, run as whoever runs this.

A service runs as the user of the daemon or client, in its environment; ``force-user`` has no effect here, as published.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from insula.qrexec.descriptors import Local, Outlet
from insula.qrexec.log import say
from insula.qrexec.places import config_path, service_path
from insula_proto.qrexec import EXIT_NOT_FOUND, EXIT_PROBLEM
from insula_proto.services import (
    Executable,
    ServiceBroken,
    ServiceCall,
    ServiceNotFound,
    Settings,
    SocketService,
    TcpService,
    find_settings,
    locate,
    parse_call,
)

SHELL = "/bin/bash"
WAIT_FOR_SESSION = "qubes.WaitForSession"
_NO_GUI = b"nogui:"


class StartFailed(Exception):
    """``code`` is what the caller gets; ``str()`` is why, for the log."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Started:
    """What serves a call: descriptors, and a process or none."""

    def __init__(self, inlet: Local, output: Outlet, pid: int = 0) -> None:
        self.inlet = inlet
        """Read: what the service says."""
        self.output = output
        self.pid = pid
        """0: a socket, whose process is somebody else's."""
        self.before = b""
        """Given to it before anything else."""
        self.settings = Settings()


def start(command: bytes, remote: str) -> Started:
    """Start ``[nogui:]QUBESRPC …``, or other text by the shell, for a caller named ``remote``. :raise StartFailed:"""
    with _failures():
        call = parse_call(command)
        if call is None:
            return _start_program(SHELL, [b"bash", b"-c", command], {"QREXEC_REMOTE_DOMAIN": remote})
        settings = _prepare(call, command)
        found = locate(call, service_path())
        if isinstance(found, Executable):
            return _start_program(found.path, vector(found, call), call.environment(os.getpid()))
        started = _connect(found)
    started.settings = settings
    if not settings.skip_descriptor:
        started.before = call.descriptor
    return started


def replace_process(command: bytes) -> NoReturn:
    """Become an executable service: a call from the host to the host. :raise StartFailed: it is still this program."""
    with _failures():
        call = parse_call(command)
        if call is not None:
            _prepare(call, command)
            found = locate(call, service_path())
            if isinstance(found, Executable):
                # What Python ignores, a program must not.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                variables = environment(call.environment(os.getpid()))
                os.execve(found.path, vector(found, call), variables)  # noqa: S606 - an argument vector, no shell
    raise StartFailed("from host to host only services that are programs can be called", EXIT_PROBLEM)


@contextmanager
def _failures() -> Iterator[None]:
    """What can go wrong before a service runs, as what its caller is told. :raise StartFailed:"""
    try:
        yield
    except ServiceNotFound as error:
        raise StartFailed(f"no service {error}", EXIT_NOT_FOUND) from error
    except (ServiceBroken, OSError, ValueError) as error:
        raise StartFailed(str(error), EXIT_PROBLEM) from error


def _prepare(call: ServiceCall, command: bytes) -> Settings:
    """Settings of the service, once it may start. :raise ServiceBroken: :raise OSError:"""
    settings = find_settings(call, config_path())
    if settings.wait_for_session and not command.startswith(_NO_GUI):
        wait_for_session(call.source)
    return settings


def vector(found: Executable, call: ServiceCall) -> list[str]:
    """The argument reaches the program as it is (MC-17)."""
    return [found.path, call.argument] if call.argument else [found.path]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, with these, and without what another call left behind."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("QREXEC") or name == "QREXEC_SERVICE_PATH"
    }
    return {**kept, **variables}


def wait_for_session(source: str) -> None:
    """Run the service that returns when somebody has logged in. Its status does not matter. :raise OSError:"""
    call = ServiceCall(WAIT_FOR_SESSION, source, "", "")
    try:
        found = locate(call, service_path())
    except (ServiceBroken, ServiceNotFound) as error:
        say(f"not waiting for a session: {error}")
        return
    if not isinstance(found, Executable):
        say("not waiting for a session: the service is no program")
        return
    pid = os.posix_spawn(
        found.path,
        [WAIT_FOR_SESSION],
        environment({"QREXEC_REMOTE_DOMAIN": source}),
        file_actions=[(os.POSIX_SPAWN_CLOSE, 0)],
        setsigdef=[signal.SIGPIPE],
    )
    _, status = os.waitpid(pid, 0)
    if status:
        say(f"waiting for a session ended with {os.waitstatus_to_exitcode(status)}")


def _start_program(path: str, arguments: list[str] | list[bytes], variables: Mapping[str, str]) -> Started:
    """A process with sockets as its stdin and stdout; stderr is ours."""
    stdin, theirs_in = socket.socketpair()
    stdout, theirs_out = socket.socketpair()
    with theirs_in, theirs_out:
        try:
            pid = os.posix_spawn(
                path,
                arguments,
                environment(variables),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs_in.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, theirs_out.fileno(), 1),
                ],
                setsigdef=[signal.SIGPIPE],
            )
        except BaseException:
            stdin.close()
            stdout.close()
            raise
    return Started(Local.owned(stdout), Outlet(Local.owned(stdin)), pid)


def _connect(service: SocketService | TcpService) -> Started:
    """:raise OSError:"""
    connection = _connect_tcp(service) if isinstance(service, TcpService) else _connect_unix(service.path)
    reading, writing = Local.halves(connection)
    return Started(reading, Outlet(writing))


def _connect_unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By a descriptor, because an address holds 107 bytes only.
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    except OSError:
        connection.close()
        raise
    return connection


def _connect_tcp(service: TcpService) -> socket.socket:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, kind, proto, _, address = socket.getaddrinfo(
        service.host, service.port, type=socket.SOCK_STREAM, flags=numeric
    )[0]
    connection = socket.socket(family, kind, proto)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection
