"""The last good copy of the state file, and what happens when the file itself cannot be read (MC-63).

Next to ``system.db`` lies ``system.db.good``: a whole copy, replaced in one step, made each time the file was found
sound at opening, and at each change of which qubes exist. If the file is damaged it is set aside (never deleted)
together with its journal, and the copy takes its place.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

JOURNALS = ("-wal", "-shm")
"""What SQLite keeps beside a file in WAL mode. A journal belongs to one file: beside another it would be replayed
into it, so the journals of a replaced file must be gone before the new one is there."""
MAX_DAMAGED_KEPT = 1000


@dataclass(frozen=True)
class Recovery:
    """The copy was used; the user must be told."""

    reason: str
    """What was wrong with the file."""
    damaged: Path | None
    """Where the damaged file is now; None: there was no file at all."""
    copied_at: float
    """Unix time of the copy: later changes are lost, but for those of which qubes exist."""

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.copied_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        kept = f" The damaged file was kept as {self.damaged}." if self.damaged else ""
        return f"The state file could not be used ({self.reason}). The last good copy, of {when}, is used.{kept}"


def good_copy(path: Path) -> Path:
    return path.with_name(f"{path.name}.good")


def journal(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def write_good_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Replace the good copy of ``path`` by what ``connection`` holds now, atomically.

    :raise OSError, sqlite3.Error: the older copy is still there.
    """
    temporary = path.with_name(f"{path.name}.good.new")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary, isolation_level=None)) as target:
        connection.backup(target)
        # The copy of a WAL file says that it is one; without a journal it is whole by itself.
        target.execute("PRAGMA journal_mode = DELETE")
    temporary.chmod(0o600)
    _sync(temporary)
    temporary.replace(good_copy(path))
    _sync(path.parent)


def stage_good_copy(path: Path) -> Path:
    """Copy the good copy of ``path`` to where it can be checked and brought to the latest version.

    :raise OSError: no copy, no space.
    """
    staged = path.with_name(f"{path.name}.restored")
    remove_with_journals(staged)
    shutil.copyfile(good_copy(path), staged)
    staged.chmod(0o600)
    return staged


def put_in_place(staged: Path, path: Path) -> Path | None:
    """Let ``staged``, a closed file, take the place of ``path``; return where the old file is now, if there was one.

    Can be interrupted anywhere: the old file stays in place until the new one replaces it in one step.

    :raise OSError: no space.
    """
    _sync(staged)
    kept = _keep_damaged(path) if path.exists() else None
    for suffix in JOURNALS:
        journal(path, suffix).unlink(missing_ok=True)
    staged.replace(path)
    _sync(path.parent)
    return kept


def remove_with_journals(path: Path) -> None:
    """Remove a file of ours that is not needed any more; absent is fine."""
    for suffix in ("", *JOURNALS):
        journal(path, suffix).unlink(missing_ok=True)


def _keep_damaged(path: Path) -> Path:
    """Copy the file and its journals to the first free name."""
    for number in range(1, MAX_DAMAGED_KEPT + 1):
        kept = path.with_name(f"{path.name}.damaged-{number}")
        if not kept.exists():
            break
    else:
        raise FileExistsError(f"There are {MAX_DAMAGED_KEPT} damaged files beside {path} already; remove some")
    for suffix in JOURNALS:
        if journal(path, suffix).exists():
            shutil.copyfile(journal(path, suffix), journal(kept, suffix))
    shutil.copyfile(path, kept)
    _sync(kept)
    return kept


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
