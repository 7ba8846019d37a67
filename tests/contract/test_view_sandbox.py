"""A program with a view of the host: what it sees while it is prepared, and that nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from insula.preload.forks import PreloadedParent
from insula.preload.messages import View
from insula.rpc.spawn import session_uid
from insula.testing import sandbox_probe, view_probe
from insula.testing.sandbox_probe import Report

PATIENCE = 120.0
QID = 7


@pytest.fixture
async def parent() -> AsyncIterator[PreloadedParent]:
    async with PreloadedParent([view_probe.PROGRAM, sandbox_probe.PROGRAM]) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that may be seen, with a neighbour that may not."""
    for path in (tmp_path, *tmp_path.parents):
        # (A process of another user walks there.)
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o111)
    made = tmp_path / "view"
    made.mkdir()
    (made / "seen").write_text("in the view")
    (tmp_path / "beside").write_text("not in the view")
    return made


async def report_of(parent: PreloadedParent, folder: Path) -> Report:
    wanted = view_probe.request(session_uid(QID), folder)
    process, connection = await sandbox_probe.fork_reporting(parent, wanted, stderr=2)
    with connection:
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(connection, sandbox_probe.MAX_REPORT)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    return msgspec.json.decode(data, type=Report)


async def test_while_prepared_it_sees_its_paths_read_only_and_nothing_beside_them(
    parent: PreloadedParent, folder: Path
) -> None:
    seen = (await report_of(parent, folder)).environment
    assert seen["SEEN"] == "in the view"
    assert seen["ROOT"] == f"/given /{folder.parts[1]}"
    assert seen["GIVEN"] == "given 400"
    assert seen["BESIDE"] == "False"
    assert {seen["WRITE"], seen["CHANGE"]} <= {"EROFS", "EACCES", "EPERM"}
    assert seen["WRITE_ROOT"] in ("EROFS", "EACCES")
    assert seen["MOUNT"] == "EPERM"


async def test_afterwards_it_can_reach_no_file_no_process_and_no_network(parent: PreloadedParent, folder: Path) -> None:
    outcomes = (await report_of(parent, folder)).outcomes
    assert outcomes["file"].pop("make a file in memory") == sandbox_probe.ALLOWED
    assert outcomes["file"].pop("import what is not there") == "ModuleNotFoundError"
    assert outcomes["process"].pop("start a thread") == "RuntimeError"
    for kind in ("file", "process", "other process", "network", "kernel", "code"):
        assert set(outcomes[kind].values()) == {"EPERM"}, kind


async def test_threads_that_were_started_before_are_closed_in_too(parent: PreloadedParent, folder: Path) -> None:
    assert (await report_of(parent, folder)).environment["THREAD"] == "EPERM"


async def test_path_that_is_not_there_is_an_error_and_no_process_runs(parent: PreloadedParent, folder: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await report_of(parent, folder / "missing")


async def test_program_with_a_preparation_gets_no_sandbox_without_a_view_nor_another_one_with(
    parent: PreloadedParent, folder: Path
) -> None:
    wanted = view_probe.request(session_uid(QID), folder)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for wrong in (
            msgspec.structs.replace(wanted, view=None),
            msgspec.structs.replace(wanted, program=sandbox_probe.PROGRAM),
        ):
            with pytest.raises(OSError, match="view"):
                await parent.fork(wrong, [2, theirs.fileno()])


@pytest.mark.parametrize("path", ["", "/", "relative", "/a//b", "/a/", "/a\0b", "/" + "a" * 200])
def test_odd_path_is_refused_before_anything_is_done(path: str) -> None:
    data = msgspec.msgpack.encode(View((path,), (), (), 0))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(data, type=View)
