"""Insula: security by isolation. The host side.

``insula.disposable``, ``insula.qube`` and ``insula.sync`` are machines for programs (:mod:`insula.client`); they are
loaded when they are first used, so that ``import insula`` costs nothing.

Rooms, in import order (``tests/unit/test_imports.py`` holds them to it):

``model`` ``events``                     what a system is; no I/O
``store hal storage policy devices net preload`` one concern each
``lifecycle rpc qrexec gui sound backup updates templates`` what is done with them
``admin extensions``                     the published interface
``daemon client cli manager``            processes people start; machines for programs
``testing``                              fakes and checks, imported by tests only
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:  # without importing typing
    from insula.client import (
        CallFailed,
        ClientError,
        CommandFailed,
        CommandTimedOut,
        CopyFailed,
        CopyTooLarge,
        OutputTooLong,
        Qube,
        QubeEnded,
        Result,
        UnsafeStream,
        disposable,
        qube,
        sync,
    )

__version__ = "0.1.0"

__all__ = [
    "CallFailed",
    "ClientError",
    "CommandFailed",
    "CommandTimedOut",
    "CopyFailed",
    "CopyTooLarge",
    "OutputTooLong",
    "Qube",
    "QubeEnded",
    "Result",
    "UnsafeStream",
    "disposable",
    "qube",
    "sync",
]


def __getattr__(name: str) -> object:
    """Load what :mod:`insula.client` offers (PEP 562)."""
    if name == "sync":
        return import_module("insula.client.sync")
    if name in __all__:
        return getattr(import_module("insula.client"), name)
    raise AttributeError(f"module 'insula' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
