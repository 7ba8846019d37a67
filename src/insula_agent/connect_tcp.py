"""``qvm-connect-tcp``: a port of this qube is a port of another one (``qubes.ConnectTCP``), a call for each connection.

Only programs in this qube reach it: it listens on the loopback interface. Each connection is handed to a
``qrexec-client-vm`` as its input and output; this program touches no byte of it.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from insula_agent.client_call import CLIENT, EXIT_INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ADDRESS = "127.0.0.1"
BACKLOG = 32
MAX_CONNECTIONS = 128
"""At once: half of the calls a qube may have. Others wait to be accepted."""
_SIGPIPE = 13

USAGE = """usage: qvm-connect-tcp [--foreground] [LOCALPORT]:[QUBE]:PORT

Makes PORT of another qube reachable as LOCALPORT (default: the same number) of this one, in the background.
Without QUBE the policy's default target is asked for.
"""


def parse(text: str) -> tuple[int, str, int] | None:
    """Local port, qube, its port; None: not understood."""
    parts = text.split(":")
    if len(parts) != 3 or not _is_port(parts[2]) or not (parts[0] == "" or _is_port(parts[0])):
        return None
    return int(parts[0] or parts[2]), parts[1], int(parts[2])


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def serve(listener: socket.socket, target: str, port: int) -> None:
    """Accept for ever. :raise OSError: the listener broke."""
    running: dict[int, int] = {}
    """Descriptors of the calls' processes, each with its pid."""
    poll = select.poll()
    while True:
        is_listening = len(running) < MAX_CONNECTIONS
        if is_listening:
            poll.register(listener.fileno(), select.POLLIN)
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                pid = _call(listener, target, port)
                if pid:
                    pidfd = os.pidfd_open(pid)
                    running[pidfd] = pid
                    poll.register(pidfd, select.POLLIN)
            else:
                os.waitpid(running.pop(fd), 0)
                poll.unregister(fd)
                os.close(fd)
        if len(running) >= MAX_CONNECTIONS and is_listening:
            poll.unregister(listener.fileno())


def _call(listener: socket.socket, target: str, port: int) -> int:
    """Accept one connection and start its call; its pid, or 0 if it has gone already."""
    try:
        connection, _ = listener.accept()
    except ConnectionAbortedError:
        return 0
    with connection:
        fd = connection.fileno()
        return os.posix_spawnp(
            CLIENT, [CLIENT, "--", target, f"qubes.ConnectTCP+{port}"], os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, fd, 1)], setsigdef=[_SIGPIPE],
        )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    rest = [argument for argument in arguments if argument != "--foreground"]
    wanted = parse(rest[0]) if len(rest) == 1 else None
    if wanted is None:
        sys.stderr.write(USAGE)
        return 0 if "--help" in rest else 1
    local, target, port = wanted
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, local))
        listener.listen(BACKLOG)
    except OSError as error:
        sys.stderr.write(f"qvm-connect-tcp: port {local}: {error.strerror}\n")
        return 1
    sys.stdout.write(f"port {port} of {target or 'the default qube'} is port {local} of {ADDRESS}\n")
    sys.stdout.flush()
    if "--foreground" not in arguments:
        if os.fork():
            return 0
        os.setsid()
        # Whoever started us may wait until nobody holds these any more.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
    try:
        serve(listener, target, port)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
