"""Starting, making and ending qubes for a call: the few Admin API calls that a daemon makes (reference: qrexec, §3)."""

from __future__ import annotations

import socket

from insula.qrexec.errors import QubesdError
from insula.qrexec.places import qubesd_socket
from insula_proto import admin
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

NOT_HALTED = "QubesVMNotHaltedError"
_READ_SIZE = 65536


def call(method: str, dest: str, payload: bytes = b"", *, internal: bool = False) -> bytes:
    """Make one call as dom0; return its result. It waits as long as the daemon works on it: a start takes its time.

    :raise QubesdError:
    """
    path = qubesd_socket(internal=internal)
    decoder = admin.ResponseDecoder()
    try:
        request = admin.encode_request(admin.Request(admin.RequestHead(method, "", admin.ADMIN, dest), payload))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(_READ_SIZE):
                decoder.receive(data)
        outcome = decoder.finish()
    except (OSError, LocalProtocolError, RemoteProtocolError) as error:
        raise QubesdError(f"{method} of {dest}: {path}: {error}") from error
    if isinstance(outcome, admin.Success):
        return outcome.payload
    if isinstance(outcome, admin.Failure):
        raise QubesdError(f"{method} of {dest}: {outcome.type}: {outcome.message}", outcome.type)
    raise QubesdError(f"{method} of {dest} was refused")


def start(name: str) -> None:
    """Start a qube; one that runs already is fine. :raise QubesdError:"""
    try:
        call("admin.vm.Start", name)
    except QubesdError as error:
        if error.kind != NOT_HALTED:
            raise


def create_disposable(base: str, *, by_uuid: bool) -> str:
    """Make a disposable; return its name, or ``uuid:…``. :raise QubesdError:"""
    name = call("admin.vm.CreateDisposable", base, b"uuid" if by_uuid else b"").decode("ascii", "replace")
    if not name or not name.isprintable() or "/" in name or (by_uuid and not name.startswith(admin.UUID_PREFIX)):
        raise QubesdError(f"admin.vm.CreateDisposable of {base} named no qube")
    return name


def kill(name: str) -> None:
    """:raise QubesdError:"""
    call("admin.vm.Kill", name)
