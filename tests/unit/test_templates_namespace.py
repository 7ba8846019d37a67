"""The namespace: id maps, and what a program inside may and may not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula.templates import namespace
from insula.templates.errors import BuildFailed, Unbuildable
from insula.templates.namespace import IDS, ROOT_RANGE, IdMap, IdRange, parse_subordinate_ids, plan_id_map


def test_root_maps_to_ids_nobody_has() -> None:
    ids = plan_id_map(0, 0, "root", "", "")
    assert ids.uids == ids.gids == (IdRange(0, ROOT_RANGE, IDS),)
    assert ids.root_uid == ROOT_RANGE


def test_user_maps_to_himself_and_his_range() -> None:
    ids = plan_id_map(1000, 1001, "ann", "bob:1:70000\nann:100000:65536\n", "ann:200000:65536\n")
    assert ids == IdMap(
        (IdRange(0, 1000, 1), IdRange(1, 100000, IDS - 1)), (IdRange(0, 1001, 1), IdRange(1, 200000, IDS - 1))
    )


@pytest.mark.parametrize("subgid", ["", "ann:100000:1000", "bob:100000:65536"])
def test_user_without_a_range_is_told_what_to_do(subgid: str) -> None:
    with pytest.raises(Unbuildable, match="usermod"):
        plan_id_map(1000, 1000, "ann", "ann:100000:65536", subgid)


@pytest.mark.parametrize("line", ["ann:x:65536", "ann:1", "ann:-5:65536", "ann:1:65536:9", ""])
def test_malformed_line_is_no_range(line: str) -> None:
    assert parse_subordinate_ids(line, "ann", 1000) is None


def test_range_may_be_named_by_number() -> None:
    assert parse_subordinate_ids("1000:100000:65536", "ann", 1000) == (100000, 65536)


@pytest.fixture
def ids(tmp_path: Path) -> IdMap:
    found = namespace.own_id_map()
    namespace.hand_over(tmp_path, found)
    return found


async def lines(argv: list[str], folder: Path, ids: IdMap) -> list[str]:
    found: list[str] = []
    await namespace.run(argv, work_dir=folder, ids=ids, on_line=found.append)
    return found


async def test_program_is_root_of_a_whole_range_of_ids(tmp_path: Path, ids: IdMap) -> None:
    script = "id -u; touch f; chown 65533:42 f; stat -c %u:%g f; pwd"
    assert await lines(["sh", "-ec", script], tmp_path, ids) == ["0", "65533:42", str(namespace.INSIDE)]
    assert (tmp_path / "f").stat().st_uid == ids.uids[-1].outside + 65533 - ids.uids[-1].inside
    await namespace.run(["rm", "f"], work_dir=tmp_path, ids=ids)


async def test_folder_below_a_private_one_is_reached(tmp_path: Path, ids: IdMap) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    inner = private / "inner"
    inner.mkdir()
    namespace.hand_over(inner, ids)
    await namespace.run(["touch", str(namespace.INSIDE / "here")], work_dir=inner, ids=ids)
    assert (inner / "here").exists()


async def test_root_inside_is_nobody_outside(tmp_path: Path, ids: IdMap) -> None:
    outcome = await lines(
        ["sh", "-c", "touch /etc/insula-test 2>/dev/null || echo refused; ls /root /home"], tmp_path, ids
    )
    assert outcome[0] == "refused"
    assert outcome[1:] in ([], ["/home:", "", "/root:"])


async def test_failure_carries_the_last_lines(tmp_path: Path, ids: IdMap) -> None:
    with pytest.raises(BuildFailed, match="exit status 7") as caught:
        await namespace.run(["sh", "-c", "seq 100; echo last >&2; exit 7"], work_dir=tmp_path, ids=ids)
    assert caught.value.tail.splitlines()[-1] == "last"
    assert len(caught.value.tail.splitlines()) == namespace.TAIL_LINES


async def test_program_that_is_not_there_is_a_failure(tmp_path: Path, ids: IdMap) -> None:
    with pytest.raises(BuildFailed):
        await namespace.run(["no-such-program"], work_dir=tmp_path, ids=ids)


async def test_very_long_line_is_cut_and_passed_on(tmp_path: Path, ids: IdMap) -> None:
    size = 3 * namespace.LINE_LIMIT
    found = await lines(["sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo; echo end"], tmp_path, ids)
    assert sum(map(len, found)) == size + 3
    assert max(map(len, found)) <= namespace.LINE_LIMIT
    assert found[-1].endswith("end")


async def test_cancelled_run_leaves_no_process(tmp_path: Path, ids: IdMap) -> None:
    started = asyncio.Event()
    # Writes on and on: if a process were left, the file would go on growing; here it can never end by itself.
    script = "echo up; while :; do sleep 1000 & wait; done"
    task = asyncio.create_task(
        namespace.run(["sh", "-c", script], work_dir=tmp_path, ids=ids, on_line=lambda _line: started.set())
    )
    await started.wait()
    marked = processes_in(tmp_path)
    assert marked
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(120):
        while processes_in(tmp_path):
            await asyncio.sleep(0.01)


def processes_in(folder: Path) -> list[str]:
    """Processes whose current folder this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                here, there = (entry / "cwd").stat(), folder.stat()
            except OSError:
                continue
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                found.append(entry.name)
    return found
