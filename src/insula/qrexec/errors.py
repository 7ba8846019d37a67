"""Errors of the room.

::

    QrexecError
    ├── ChannelTimeout      nobody was at the other end of a vchan in time
    ├── DaemonError         a qube's daemon did not do what it was asked
    │   └── DaemonAbsent    there is none: the qube does not run
    └── QubesdError         the Admin API refused, failed or could not be reached; ``kind`` is its exception's name
"""

from __future__ import annotations


class QrexecError(Exception):
    """Base; ``str()`` is for people."""


class ChannelTimeout(QrexecError): ...


class DaemonError(QrexecError): ...


class DaemonAbsent(DaemonError): ...


class QubesdError(QrexecError):
    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind
