"""The one place where the configuration is kept: an SQLite file, one writer, one transaction a change.

``Store.system`` is the current :class:`System`, an immutable value that any number of readers may hold. ``commit``
writes the difference to it and then makes the new value the current one; if it raises, nothing changed, neither on
disk nor in memory. After a crash at any moment the file holds the state before or after a commit (MC-62).

Beside the configuration the file has one record for each running machine, so that the next daemon finds it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from insula.model.consistency import problems
from insula.model.names import QubeName
from insula.model.system import System
from insula.store.copies import (
    Recovery,
    good_copy,
    put_in_place,
    remove_with_journals,
    stage_good_copy,
    write_good_copy,
)
from insula.store.errors import StoreDamaged, StoreError, StoreLocked, StoreTooNew
from insula.store.migrations import APPLICATION_ID, LATEST, expected_schema, migrate, schema_of, transaction, version_of
from insula.store.rows import MAX_PROBLEMS_SHOWN, MalformedState, read_system, write_difference

log = logging.getLogger(__name__)

MAX_MACHINE_RECORD = 256 * 1024
"""Bytes of JSON."""

_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT})
"""Result codes that say the content is wrong; others (no permission, I/O error) say nothing about the content.
SQLITE_ERROR is "no such table or column"."""


class Store:
    """Made by :meth:`open`; for one thread."""

    is_new: bool
    """There was no state file, nor a copy of one."""
    recovery: Recovery | None
    """Set if the last good copy had to be used: tell the user, and remove nothing just because the system does not
    name it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, found: _Found, resources: ExitStack) -> None:
        """Use :meth:`open`. Takes over ``resources`` (connection and lock) if it does not raise."""
        self._path = path
        self._connection = connection
        self._system = read_system(connection)
        self.is_new = found.is_new
        self.recovery = found.recovery
        self._resources = resources.pop_all()
        self._is_open = True

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the state file, making it (with dom0 and the built-in labels) if there is none.

        :raise StoreLocked: another process has it open.
        :raise StoreTooNew: a newer version wrote it; it was not touched.
        :raise StoreDamaged: neither it nor a good copy can be read; both were kept.
        :raise StoreError: no permission, no space, I/O error.
        """
        with ExitStack() as resources:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                resources.enter_context(_locked(path.with_name(f"{path.name}.lock")))
                found = _make_usable(path)
                connection = resources.enter_context(closing(_connect(path)))
                store = cls(path, connection, found, resources)
            except (OSError, sqlite3.Error, MalformedState) as error:
                raise StoreError(f"The state file {path} cannot be opened: {error}") from error
        store._write_copy()
        return store

    @property
    def system(self) -> System:
        return self._system

    def commit(self, system: System, *, is_synced: bool = True) -> None:
        """Make ``system`` the current one, on disk first.

        ``is_synced``: wait for the disk. Without, the change may be lost with the host's power, but not with this
        process: for what does not outlive a loss of power itself.

        :raise StoreError: it was not kept: no space, I/O error, or it is not consistent (an error of ours).
        """
        wrong = problems(system, since=self._system)
        if wrong:
            raise StoreError(f"The change was refused, it would break: {'; '.join(wrong[:MAX_PROBLEMS_SHOWN])}")
        with self._change(is_synced=is_synced):
            write_difference(self._connection, self._system, system)
        is_copied = _lasting(system) != _lasting(self._system)
        self._system = system
        if is_copied:
            self._write_copy()

    def put_machine(self, name: QubeName | str, record: Mapping[str, Any], *, is_synced: bool = True) -> None:
        """Keep a record (JSON values) of the machine of a qube, replacing the one there was.

        ``is_synced`` as for :meth:`commit`.

        :raise StoreError: it was not kept.
        """
        text = msgspec.json.encode(record).decode("utf-8")
        if len(text) > MAX_MACHINE_RECORD:
            raise StoreError(f"The machine record of {name} is longer than {MAX_MACHINE_RECORD} bytes")
        with self._change(is_synced=is_synced):
            self._connection.execute("INSERT OR REPLACE INTO machine (qube, record) VALUES (?, ?)", (name, text))

    def remove_machine(self, name: QubeName | str) -> None:
        """Forget the machine of a qube; absent is fine. :raise StoreError:"""
        with self._change():
            self._connection.execute("DELETE FROM machine WHERE qube = ?", (name,))

    def machines(self) -> dict[str, dict[str, Any]]:
        """Name → record of every machine there is one of."""
        rows = self._connection.execute("SELECT qube, record FROM machine ORDER BY qube")
        return {name: msgspec.json.decode(record, type=dict[str, Any]) for name, record in rows}

    def close(self) -> None:
        """Bring the good copy up to date and let go of the file; the store cannot be used afterwards. Idempotent."""
        with self._resources:
            if self._is_open:
                self._write_copy()
            self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _change(self, *, is_synced: bool = True) -> Iterator[None]:
        try:
            with _synced_when(self._connection, is_synced=is_synced), transaction(self._connection):
                yield
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise StoreError(f"The change was not kept: {error}") from error

    def _write_copy(self) -> None:
        """The copy is a precaution: without space for it work goes on with the older one."""
        try:
            write_good_copy(self._connection, self._path)
        except (OSError, sqlite3.Error) as error:
            log.warning("the good copy of %s could not be renewed: %s", self._path, error)


def _lasting(system: System) -> set[QubeName]:
    """Qubes that outlive their machine. Others are made and removed by programs, while somebody waits, and nobody would
    look for one in the copy."""
    return {name for name, qube in system.qubes.items() if not qube.properties.get("auto_cleanup")}


@contextmanager
def _synced_when(connection: sqlite3.Connection, *, is_synced: bool) -> Iterator[None]:
    """With a journal of its own (WAL) a transaction that is not waited for is kept or lost as a whole, and the next one
    that is takes it along."""
    if is_synced:
        yield
        return
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = FULL")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when the process ends, however."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(f"Another process uses {path.name.removesuffix('.lock')}") from error
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Found:
    """What was there when the file was made usable."""

    is_new: bool = False
    recovery: Recovery | None = None


def _make_usable(path: Path) -> _Found:
    """Make ``path`` a sound file of the latest version: a new one, or from the good copy if need be."""
    copy = good_copy(path)
    if not path.exists() and not copy.exists():
        _make_new(path)
        return _Found(is_new=True)
    reason = _find_damage(path)
    if reason is None:
        return _Found()
    if not copy.exists():
        raise StoreDamaged(f"The state file {path} cannot be used ({reason}) and there is no good copy; it was kept")
    staged = stage_good_copy(path)
    copy_reason = _find_damage(staged)
    if copy_reason is not None:
        raise StoreDamaged(
            f"Neither the state file {path} ({reason}) nor its good copy ({copy_reason}) can be used; both were kept"
        )
    recovery = Recovery(reason, put_in_place(staged, path), copy.stat().st_mtime)
    log.error("%s", recovery)
    return _Found(recovery=recovery)


def _make_new(path: Path) -> None:
    """Make the file aside, so that there never is one without dom0."""
    fresh = path.with_name(f"{path.name}.fresh")
    remove_with_journals(fresh)
    with closing(_connect(fresh)) as connection:
        migrate(connection)
        with transaction(connection):
            write_difference(connection, None, System())
    put_in_place(fresh, path)


def _find_damage(path: Path) -> str | None:
    """What is wrong with a state file; None if it is sound. Brings an older one to the latest version.

    Looking is done without writing: a damaged file, or one of a newer version, stays byte for byte what it is.

    :raise StoreTooNew:
    """
    if not path.exists():
        return "it is missing"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            version = _known_version(connection, path)
            reason = _find_damage_inside(connection, version)
        if reason is None and version < LATEST:
            with closing(_connect(path)) as connection:
                migrate(connection)
                reason = _find_damage_inside(connection, LATEST)
    except MalformedState as error:
        return str(error)
    except sqlite3.DatabaseError as error:
        # The low byte is the primary code; text that is not UTF-8 is refused by the Python layer, which gives none.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE:
            return str(error)
        raise
    return reason


def _known_version(connection: sqlite3.Connection, path: Path) -> int:
    version = version_of(connection)
    if version > LATEST:
        raise StoreTooNew(
            f"The state file {path} was written by a newer version of Insula (state version {version}, this one "
            f"knows {LATEST}). It was not changed; use the newer version"
        )
    return version


def _find_damage_inside(connection: sqlite3.Connection, version: int) -> str | None:
    if version == 0 or connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        return "it is not a state file"
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        return str(verdict)
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        return "a reference leads nowhere"
    if version == LATEST:
        if schema_of(connection) != expected_schema():
            return "it has unknown or missing tables or fields"
        read_system(connection)
    return None


def _connect(path: Path) -> sqlite3.Connection:
    with ExitStack() as undo:
        connection = undo.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        path.chmod(0o600)
        undo.pop_all()
    return connection
