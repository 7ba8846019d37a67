"""``insula-volume-import``: what the published tools run to import a volume (admin-api §2, "Data import").

They do not send the data to the daemon's socket themselves: they run the program
``/etc/qubes-rpc/admin.vm.volume.Import[WithSize] VOLUME``, as root, with the data on its standard input, and take what
it prints for the daemon's answer. Ours is one program linked there under both names; it passes the stream on to the
socket, where the methods take data of any length. No shell and no file in between.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from insula.daemon.paths import Paths
from insula_proto import admin
from insula_proto.admin import RequestHead
from insula_proto.errors import LocalProtocolError

METHODS = ("admin.vm.volume.Import", "admin.vm.volume.ImportWithSize")
PUBLISHED_SOCKET = Path("/var/run/qubesd.sock")
"""Where the published tools look for the daemon (admin-api §1)."""
CHUNK = 1024 * 1024
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 1


def socket_path(environ: Mapping[str, str]) -> Path:
    """The daemon of ``INSULA_RUNTIME_DIR`` if that is set (sudo takes it away), else where published tools look."""
    return Paths.from_environment(environ).admin_socket if environ.get("INSULA_RUNTIME_DIR") else PUBLISHED_SOCKET


def request_head(argv: Sequence[str], environ: Mapping[str, str]) -> bytes:
    """The request line: method from the program's name, volume from its argument, qube from the environment.

    :raise ValueError: it was not called as the published tools call it.
    """
    method = Path(argv[0]).name
    if method not in METHODS or len(argv) != 2:
        raise ValueError(f"to be linked as {' and '.join(METHODS)} and called with the name of a volume")
    if environ.get("QREXEC_REMOTE_DOMAIN") != admin.ADMIN:
        raise ValueError(f"calls from {admin.ADMIN} only")
    try:
        return admin.encode_request_head(
            RequestHead(method, argv[1], admin.ADMIN, environ.get("QREXEC_REQUESTED_TARGET", ""))
        )
    except LocalProtocolError as error:
        raise ValueError(str(error)) from error


def send(connection: socket.socket, head: bytes, source: int) -> None:
    """Send everything, or as much as the daemon wants: one that answers early has decided."""
    try:
        connection.sendall(head)
        while not select.select([connection], [], [], 0)[0] and (data := os.read(source, CHUNK)):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        return


def pass_on_answer(connection: socket.socket, target: int) -> None:
    while data := _receive(connection):
        while data:
            data = data[os.write(target, data) :]


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(CHUNK)
    except ConnectionResetError:  # closed with unread bytes of ours: the end of the answer all the same
        return b""


def run(argv: Sequence[str], environ: Mapping[str, str], source: int, target: int) -> int:
    """Do it between two descriptors; the exit code."""
    try:
        head = request_head(argv, environ)
    except ValueError as error:
        print(f"insula-volume-import: {error}", file=sys.stderr)
        return EXIT_USAGE
    path = socket_path(environ)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            os.write(target, admin.encode_failure("QubesException", f"No daemon answers at {path}: {error.strerror}"))
            return EXIT_UNAVAILABLE
        send(connection, head, source)
        pass_on_answer(connection, target)
    return 0


def main() -> None:
    sys.exit(run(sys.argv, os.environ, sys.stdin.fileno(), sys.stdout.fileno()))


if __name__ == "__main__":
    main()
