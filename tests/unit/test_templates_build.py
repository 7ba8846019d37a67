"""Builds with a tiny distribution: the same steps, namespaces and tools as the real one, without packages."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.model.applications import MAX_LIST
from insula.templates import build as builds
from insula.templates.build import BuildProgress, BuiltTemplate, build, build_distribution, clean, load
from insula.templates.errors import BuildFailed, TemplateError, Unbuildable
from insula.testing.template_parts import KERNEL_VERSION, TinyDistribution, pvh_elf


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    work, out = tmp_path / "work", tmp_path / "out"
    yield work, out
    await clean(work)


def check(image: Path) -> None:
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True, timeout=120)


def debugfs(image: Path, request: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", request, str(image)], capture_output=True, text=True, check=True, timeout=120
    ).stdout


async def test_build_publishes_a_template(folders: tuple[Path, Path]) -> None:
    built = await build_distribution(TinyDistribution(), *folders)
    assert built.kernel.read_bytes() == pvh_elf()
    assert built.kernel_version == KERNEL_VERSION
    assert built.initrd.read_bytes().startswith(b"070701")
    assert built.root_image.stat().st_size == built.size
    assert built.root_image.stat().st_blocks * 512 < built.size // 20
    assert (built.distribution, built.release) == ("tiny", "1")
    check(built.root_image)


async def test_what_a_system_says_of_its_applications_is_beside_the_image(folders: tuple[Path, Path]) -> None:
    assert (await build_distribution(TinyDistribution(), *folders)).applications is None
    script = TinyDistribution().script + '; echo a.desktop:Name=A > "$1/.insula-applications"'
    built = await build_distribution(TinyDistribution(script=script), *folders)
    assert built.applications is not None
    assert built.applications.read_text() == "a.desktop:Name=A\n"
    assert ".insula-applications" not in debugfs(built.root_image, "ls /")


async def test_endless_list_of_applications_is_left_out(folders: tuple[Path, Path]) -> None:
    script = TinyDistribution().script + f'; truncate --size {MAX_LIST + 1} "$1/.insula-applications"'
    assert (await build_distribution(TinyDistribution(script=script), *folders)).applications is None


async def test_owners_survive_into_the_image(folders: tuple[Path, Path]) -> None:
    built = await build_distribution(TinyDistribution(), *folders)
    assert "User:  1000   Group:  1000" in debugfs(built.root_image, "stat /adapted")
    assert "User:     0   Group:     0" in debugfs(built.root_image, "stat /usr/bin/busybox")


async def test_second_build_returns_the_first_at_once(folders: tuple[Path, Path]) -> None:
    distribution = TinyDistribution()
    first = await build_distribution(distribution, *folders)
    events: list[BuildProgress] = []
    assert await build_distribution(distribution, *folders, events.append) == first
    assert distribution.bootstraps == 1
    assert events == []


async def test_template_can_be_loaded_again(folders: tuple[Path, Path]) -> None:
    built = await build_distribution(TinyDistribution(), *folders)
    assert load(built.root_image.parent) == built
    assert load(folders[0]) is None


async def test_progress_goes_through_the_steps_and_never_back(folders: tuple[Path, Path]) -> None:
    events: list[BuildProgress] = []
    await build_distribution(TinyDistribution(), *folders, events.append)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert list(dict.fromkeys(event.step for event in events)) == [
        "agent", "bootstrap", "system", "kernel", "image", "publish",
    ]  # fmt: skip


async def test_progress_is_told_on_the_event_loop(folders: tuple[Path, Path]) -> None:
    """Whoever shows it sets timers."""
    loops: set[asyncio.AbstractEventLoop] = set()
    await build_distribution(TinyDistribution(), *folders, lambda _: loops.add(asyncio.get_running_loop()))
    assert loops == {asyncio.get_running_loop()}


async def test_failed_step_publishes_nothing_and_is_where_the_next_build_goes_on(folders: tuple[Path, Path]) -> None:
    work, out = folders
    distribution = TinyDistribution()
    broken = replace(distribution, script="echo no such luck; exit 3")
    with pytest.raises(BuildFailed) as caught:
        await build_distribution(broken, work, out)
    assert "no such luck" in caught.value.tail
    assert list(out.iterdir()) == []
    await build_distribution(distribution, work, out)
    assert (broken.bootstraps, distribution.bootstraps) == (1, 0)


async def test_changed_input_makes_another_template(folders: tuple[Path, Path]) -> None:
    first = await build_distribution(TinyDistribution(), *folders)
    changed = TinyDistribution(script=TinyDistribution().script + "\n# changed")
    second = await build_distribution(changed, *folders)
    assert second.content_key != first.content_key
    assert load(first.root_image.parent) == first


async def test_broken_kernel_publishes_nothing(folders: tuple[Path, Path]) -> None:
    distribution = TinyDistribution()
    distribution.files = {**distribution.files, f"boot/vmlinuz-{KERNEL_VERSION}": b"no kernel"}
    with pytest.raises(BuildFailed, match="bzImage"):
        await build_distribution(distribution, *folders)
    assert list(folders[1].iterdir()) == []


async def test_cancelled_build_publishes_nothing_and_can_be_repeated(folders: tuple[Path, Path]) -> None:
    reached = asyncio.Event()

    def watch(event: BuildProgress) -> None:
        if event.step == "image":
            reached.set()

    task = asyncio.create_task(build_distribution(TinyDistribution(), *folders, watch))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(folders[1].iterdir()) == []
    await build_distribution(TinyDistribution(), *folders)


async def test_two_builds_in_one_folder_exclude_each_other(folders: tuple[Path, Path]) -> None:
    results = await asyncio.gather(
        *(build_distribution(TinyDistribution(), *folders) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == [BuiltTemplate.__name__, TemplateError.__name__]


async def test_too_little_space_is_refused_before_anything_is_done(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SPACE_NEEDED", 1 << 60)
    distribution = TinyDistribution()
    with pytest.raises(Unbuildable, match="MiB"):
        await build_distribution(distribution, *folders)
    assert distribution.bootstraps == 0


async def test_work_folder_keeps_only_what_the_next_build_can_use(folders: tuple[Path, Path]) -> None:
    await build_distribution(TinyDistribution(), *folders)
    kept = {path.name.partition("-")[0] for path in folders[0].iterdir()}
    assert "system" not in kept
    assert "root" not in kept
    assert "bootstrap" in kept
    await clean(folders[0])
    assert not folders[0].exists()


async def test_unknown_name_lists_the_known_ones(folders: tuple[Path, Path]) -> None:
    with pytest.raises(TemplateError, match="debian-12"):
        await build("plan-9", *folders)
