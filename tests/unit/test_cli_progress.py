"""Progress lines without a terminal, and undoing what could not be finished."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from insula.cli import progress
from insula.cli.progress import board
from insula.cli.undo import removed_on_failure
from insula.model.errors import QubesException
from insula.testing.admin_daemon import WORK, admin_daemon


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(120):
        await condition.wait()


async def test_quick_step_gives_only_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 3600.0)
    with board() as lines, lines.step("work", "starting", "started") as step:
        step.update("mounting", 0.5)
    assert re.fullmatch(r"work started in [0-9.]+ s\n", capsys.readouterr().err)


async def test_failed_step_gives_no_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(QubesException), board() as lines, lines.step("work", "starting", "started"):
        raise QubesException("no")
    assert capsys.readouterr().err == ""


async def test_long_step_shows_itself_again_and_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "PLAIN_REPEAT_S", 0.01)
    monkeypatch.setattr(progress, "PLAIN_GAP_S", 0.0)
    shown: list[str] = []
    enough = asyncio.Event()

    def note(line: str) -> None:
        shown.append(line)
        if len(shown) > 3:
            enough.set()

    monkeypatch.setattr(progress, "say", note)
    with board() as lines, lines.step("tem\x1bplate", "unpacking") as step:
        step.update("unpacking more", 1.5)
        await until(enough)
    assert shown[0] == "tem\\x1bplate: unpacking more 100%"
    assert shown[1].startswith("tem\\x1bplate: unpacking more 100% (")


async def test_cancelled_work_is_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with admin_daemon(tmp_path) as daemon:
        reached = asyncio.Event()

        async def half_made() -> None:
            async with removed_on_failure(daemon.client, WORK):
                reached.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(half_made())
        await until(reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert WORK not in daemon.store.system.qubes
    assert capsys.readouterr().err == "work was removed again\n"


async def test_what_cannot_be_removed_again_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with admin_daemon(tmp_path) as daemon:
        await daemon.client.start(WORK)
        with pytest.raises(QubesException, match="first"):
            async with removed_on_failure(daemon.client, WORK):
                raise QubesException("first")
    assert capsys.readouterr().err.startswith("work is unfinished and could not be removed: ")
