"""Errors of the store.

StoreError            the change was not kept, or the file cannot be used; the message says what to do
├── StoreLocked       another process has the store open
├── StoreTooNew       written by a newer version of the program; the file was not touched
└── StoreDamaged      the file cannot be read and there is no good copy; the file was kept

Clients of the Admin API see all of them as QubesException.
"""

from __future__ import annotations

from insula.model.errors import QubesException


class StoreError(QubesException):
    """After it the state in memory and the one on disk are what they were before."""

    @property
    def wire_name(self) -> str:
        return QubesException.__name__


class StoreLocked(StoreError): ...


class StoreTooNew(StoreError): ...


class StoreDamaged(StoreError): ...
