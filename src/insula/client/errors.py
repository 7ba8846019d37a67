"""What can go wrong in :mod:`insula.client`, beside the refusals of the daemon.

::

    ClientError
    ├── CommandFailed      check=True and the exit code was not 0; has the result
    ├── CommandTimedOut    (also a TimeoutError) it took too long and was ended
    ├── OutputTooLong      it wrote more than was to be kept, and was ended
    ├── CallFailed         the command could not be begun
    ├── QubeEnded          the qube stopped, or reached a limit, meanwhile; has the reason
    └── CopyFailed         a file or folder was not copied; nothing is left under its name
        ├── UnsafeStream   what the qube sent is not what may be written to this machine
        └── CopyTooLarge   it is larger, or has more files, than was allowed

Refusals of the daemon are :class:`insula.model.errors.InsulaError` (no such qube, not enough memory, not running);
a daemon that cannot be reached or started is ``DaemonUnavailable`` of :mod:`insula.admin.client` and
:mod:`insula.daemon.autostart`. Messages quote what a qube said with ``ascii()``: no letter of it can act on a terminal.
"""

from __future__ import annotations

from insula.client.result import Result


class ClientError(Exception):
    """Base of the errors above."""


class CommandFailed(ClientError):
    """``result`` is what it left behind."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"exit code {result.exit_code}: {_excerpt(result.stderr)}")
        self.result = result


class CommandTimedOut(ClientError, TimeoutError): ...


class OutputTooLong(ClientError): ...


class CallFailed(ClientError): ...


class QubeEnded(ClientError):
    """``reason``: ``stopped``, ``lifetime``, ``cpu-time`` or ``unknown``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} has ended: {reason}")
        self.reason = reason


class CopyFailed(ClientError): ...


class UnsafeStream(CopyFailed): ...


class CopyTooLarge(CopyFailed): ...


EXCERPT = 300
"""Bytes of an error output that a message quotes."""


def _excerpt(untrusted_output: bytes) -> str:
    return ascii(untrusted_output[-EXCERPT:].decode("utf-8", "backslashreplace").strip())


def copy_failed(what: str, untrusted_output: bytes) -> CopyFailed:
    """The error for a copy whose program in the qube failed."""
    return CopyFailed(f"{what}: {_excerpt(untrusted_output)}")
