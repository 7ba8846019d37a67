"""Power loss after every change an operation makes to the disk (MC-61).

A journal watches the operation's system calls and knows what a disk is bound to have: the content a file had when
it was last synced, the names a folder had when it was last synced. From that four disks are made for every step,
each the worst of its kind, and the pool must find the old or the new content on each:

- *nothing more*: only what was synced is there;
- *names only*: all names are there, with the content last synced (a rename overtakes the data);
- *removals only*: names last synced, less those that were removed since (an unlink overtakes everything);
- *replacements only*: names last synced, each for the file it stands for now (a rename overtakes creations).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import storage_scenarios as scenarios

CHANGES = ("write", "pwrite", "ftruncate", "truncate", "fsync", "rename", "replace", "unlink", "link", "mkdir", "rmdir")
CHANGES_UNSEEN = ("copy_file_range",)
"""Not used by any scenario; the journal says so if that changes."""
FOLDER = -1
"""Instead of an inode: the name is a folder's."""

Names = dict[str, dict[str, int]]
"""Folder → name → inode."""


@dataclass(frozen=True)
class Disk:
    """A possible disk after a power loss."""

    kind: str
    step: int
    names: Names
    data: dict[int, bytes]

    def write(self, target: Path) -> None:
        made: dict[int, Path] = {}
        self._write_folder(".", target, made)

    def _write_folder(self, folder: str, target: Path, made: dict[int, Path]) -> None:
        target.mkdir()
        for name, inode in self.names.get(folder, {}).items():
            path = target / name
            if inode == FOLDER:
                self._write_folder(os.path.normpath(f"{folder}/{name}"), path, made)
            elif inode in made:
                path.hardlink_to(made[inode])
            else:
                path.write_bytes(self.data.get(inode, b""))
                made[inode] = path


class Journal:
    """Wraps the functions of ``os`` that change a disk."""

    def __init__(self, root: Path, unsynced: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """``unsynced``: files (names) whose content a machine wrote and nobody synced."""
        self._root = root
        self._lock = threading.RLock()
        self._names = self._look()
        self._data: dict[int, bytes] = {}
        for folder, names in self._names.items():
            for name, inode in names.items():
                path = root / folder / name
                if inode != FOLDER:
                    self._data[inode] = bytes(path.stat().st_size) if name in unsynced else path.read_bytes()
        self.disks: list[Disk] = []
        self._step = 0
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        for name in CHANGES_UNSEEN:
            monkeypatch.setattr(os, name, None)

    def _look(self) -> Names:
        found: Names = {}
        for folder, folders, files in os.walk(self._root):
            here = os.path.relpath(folder, self._root)
            found[here] = dict.fromkeys(folders, FOLDER)
            for name in files:
                found[here][name] = os.lstat(Path(folder) / name).st_ino
        return found

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._lock:
                if name in {"rename", "replace"}:
                    self._moved(Path(arguments[0]), Path(arguments[1]))
                result = real(*arguments, **keywords)
                if name == "fsync":
                    self._synced(Path(f"/proc/self/fd/{arguments[0]}").readlink())
                self._record()
                return result

        return call

    def _moved(self, source: Path, target: Path) -> None:
        """A folder keeps the names synced in it when it is moved."""
        if source.is_dir():
            old, new = (os.path.relpath(path, self._root) for path in (source, target))
            for folder in [key for key in self._names if key == old or key.startswith(old + "/")]:
                self._names[new + folder[len(old) :]] = dict(self._names[folder])

    def _synced(self, path: Path) -> None:
        if path.is_dir():
            here = os.path.relpath(path, self._root)
            self._names[here] = self._look()[here]
        elif path.is_relative_to(self._root):
            self._data[path.stat().st_ino] = path.read_bytes()

    def _record(self) -> None:
        self._step += 1
        now = self._look()
        synced = {folder: dict(names) for folder, names in self._names.items()}
        remaining = {
            folder: {name: inode for name, inode in names.items() if now.get(folder, {}).get(name) is not None}
            for folder, names in synced.items()
        }
        replaced = {
            folder: {name: now.get(folder, {}).get(name, inode) for name, inode in names.items()}
            for folder, names in synced.items()
        }
        kinds = {"nothing more": synced, "names only": now, "removals only": remaining, "replacements only": replaced}
        for kind, names in kinds.items():
            self.disks.append(Disk(kind, self._step, names, dict(self._data)))


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_power_lost_after_any_step_leaves_old_or_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("insula.storage.manifest.LAYERS_WANTED", scenarios.LAYERS_WANTED)
    scenario = scenarios.SCENARIOS[name]
    folder, found = tmp_path / "pool", tmp_path / "found"
    scenarios.run(scenario.prepare(folder))

    async def operate() -> None:
        pool = scenarios.open_pool(folder)
        await scenario.operation(pool)
        await pool.aclose()

    with monkeypatch.context() as watching:
        journal = Journal(folder, _written_by_a_machine(folder), watching)
        asyncio.run(operate())
    assert journal.disks, "the operation changes nothing: nothing was tested"
    tried: list[Disk] = []
    for disk in journal.disks:
        if any(disk.names == other.names and disk.data == other.data for other in tried):
            continue
        tried.append(disk)
        shutil.rmtree(found, ignore_errors=True)
        disk.write(found)
        try:
            scenarios.run(scenarios.check(found, scenario.allowed))
        except Exception as error:
            error.add_note(f"power lost after step {disk.step}, disk: {disk.kind}")
            raise


def _written_by_a_machine(folder: Path) -> set[str]:
    """Overlays whose content nobody has synced."""
    dirty = [json.loads(record.read_bytes())["dirty"] for record in folder.rglob("manifest.json")]
    return {name for name in dirty if name is not None}
