from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.model.block import KIB, MIB
from insula.storage import files, qemu_img
from insula.storage.housekeeping import Housekeeper
from insula.storage.turns import Turns
from insula.storage.volume_folder import PoolFolder, VolumeFolder

SIZE = 256 * KIB
VID = "qubes/work/private"
LOG = logging.getLogger("insula.storage.test")


class Room:
    """A pool's folder with one volume of two layers that can be folded, and its housekeeper."""

    def __init__(self, folder: Path, reserve: int = 0) -> None:
        self.folder = PoolFolder(folder)
        self.folder.prepare()
        self.turns = Turns()
        self.in_use: set[Path] = set()
        self.keeper = Housekeeper(self.folder, self.turns, files.Space(folder, reserve), lambda: self.in_use, LOG)
        with self.folder.new_volume(VID) as staged:
            staged.populate((staged.new_base(SIZE),), SIZE)
        self.volume: VolumeFolder = self.folder.volume(VID)
        self.volume.open_overlay(self.volume.load())
        self.volume.commit_overlay(self.volume.load(), 0)

    @property
    def layers(self) -> int:
        return len(self.volume.load().newest.chain)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path / "pool")
    yield room
    await room.keeper.aclose()


async def test_nothing_is_done_before_it_is_enabled(room: Room) -> None:
    room.keeper.schedule(VID)
    await room.keeper.settle()
    assert room.layers == 2


async def test_scheduled_volume_is_cleaned_and_folded(room: Room) -> None:
    stray = room.volume.path / room.volume.new_base(SIZE).file
    room.keeper.enable()
    room.keeper.schedule(VID)
    room.keeper.schedule(VID)
    assert room.keeper.is_busy(VID)
    await room.keeper.settle()
    assert not room.keeper.is_busy(VID)
    assert room.layers == 1
    assert not stray.exists()


async def test_files_in_use_stay(room: Room) -> None:
    stray = room.volume.path / room.volume.new_base(SIZE).file
    room.in_use = {stray, *(layer.path for layer in room.volume.layers(room.volume.load().newest.chain))}
    room.keeper.enable()
    room.keeper.schedule(VID)
    await room.keeper.settle()
    assert room.layers == 2
    assert stray.exists()


async def test_volume_that_is_gone_is_no_problem(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.folder.remove_volume(room.volume)
    room.keeper.enable()
    room.keeper.schedule(VID)
    await room.keeper.settle()
    assert caplog.records == []


async def test_no_room_to_fold_is_logged_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = Room(tmp_path / "pool", reserve=2**60)
    room.keeper.enable()
    room.keeper.schedule(VID)
    await room.keeper.settle()
    assert room.layers == 2
    assert "not tidied now" in caplog.text
    roomy = Housekeeper(room.folder, room.turns, files.Space(room.folder.root, 0), set, LOG)
    roomy.enable()
    roomy.schedule(VID)
    await roomy.settle()
    assert room.layers == 1


async def test_fold_steps_aside_for_whoever_wants_the_volume(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    interrupted = 0
    real_merge = qemu_img.merge

    async def endless_at_first(*arguments: object) -> None:
        nonlocal interrupted
        begun.set()
        if interrupted:
            return await real_merge(*arguments)  # type: ignore[arg-type]  # passed on as they came
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupted += 1
            raise

    monkeypatch.setattr(qemu_img, "merge", endless_at_first)
    room.keeper.enable()
    room.keeper.schedule(VID)
    await begun.wait()
    async with asyncio.timeout(120), room.turns.hold(VID):
        assert interrupted == 1
        assert room.layers == 2
    await room.keeper.settle()
    assert room.layers == 1


async def test_close_ends_a_fold_and_keeps_the_layers(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def endless(*_arguments: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(qemu_img, "merge", endless)
    room.keeper.enable()
    room.keeper.schedule(VID)
    await begun.wait()
    async with asyncio.timeout(120):
        await room.keeper.aclose()
    assert room.layers == 2
    room.keeper.schedule(VID)
    assert not room.keeper.is_busy(VID), "closed"


async def test_closed_before_its_turn_came_what_is_not_needed_is_gone(room: Room) -> None:
    stray = room.volume.path / room.volume.new_base(SIZE).file
    room.keeper.enable()
    room.keeper.schedule(VID)
    await room.keeper.aclose()
    assert room.layers == 2
    assert not stray.exists()


async def test_layer_another_volume_has_is_not_written(room: Room, tmp_path: Path) -> None:
    lower = room.volume.path / room.volume.load().newest.chain[0].file
    os.link(lower, tmp_path / "elsewhere")
    room.keeper.enable()
    room.keeper.schedule(VID)
    await room.keeper.settle()
    assert room.layers == 2
    assert files.allocated(lower) < MIB
