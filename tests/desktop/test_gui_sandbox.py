"""What surrounds the process that shows windows, as the host's kernel shows it, while it shows one."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from insula.gui import spare
from insula.gui.control import Configure
from insula.gui.geometry import Rect
from insula.gui.spare import Supply
from insula.gui.spawn import GUI_ADDRESS_SPACE, GUI_FILE_SIZE, GUI_PROGRAM, GUI_UID_BASE, NoDesktop, view
from insula.hal import frames
from insula.preload.forks import PreloadedParent
from insula.testing.desktop import Desktop, desktop
from insula.testing.gui_guest import ScriptedGuest, scripted_guest, scripted_guests
from insula_proto import gui

pytestmark = pytest.mark.desktop

MAX_PROPORTIONAL_MIB = 25
"""Of a process without windows, libraries shared with its parent and its like (issue 5)."""
PATIENCE_S = 120


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1920, 1080) as shown:
        yield shown


@pytest.fixture(scope="module")
def guest(screen: Desktop) -> Iterator[ScriptedGuest]:
    with scripted_guest(screen, "work", 0x3465A4) as made:
        made.window(1, Rect(10, 60, 1800, 900), 0x30C040)
        made.wait_for(gui.Painted(1))
        yield made


@pytest.fixture(scope="module")
def process(guest: ScriptedGuest) -> Path:
    """Its folder in /proc."""
    return Path("/proc", str(guest.pid))


def status(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_every_thread_is_under_the_filter_without_any_right(process: Path) -> None:
    tasks = list((process / "task").iterdir())
    assert len(tasks) > 1
    for task in tasks:
        fields = status(task)
        assert fields["Seccomp"] == "2"
        assert fields["NoNewPrivs"] == "1"
        assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")} == {"0" * 16}


def test_no_pixel_passes_through_it(process: Path) -> None:
    """The X server reads the frame memory itself; of what is mapped here no page was ever looked at."""
    _, _, mapping = (process / "smaps").read_text().partition("memfd:insula-frames")
    fields = dict(line.split(":", 1) for line in mapping.splitlines()[1:12])
    assert fields["Rss"].split() == ["0", "kB"]


def test_pixels_go_to_the_display_server_in_shared_memory(process: Path) -> None:
    """Else each frame is written to its socket: eight megabytes for a large window."""
    lines = (process / "maps").read_text().splitlines()
    shared = [line for line in lines if "rw-s" in line.split()[1] and "insula-frames" not in line]
    assert any(
        int(line.split("-")[0], 16) + 4 * 1800 * 900 <= int(line.split("-")[1].split()[0], 16) for line in shared
    )


# (Not "ipc": View.keeps_ipc. No call of System V IPC passes the filter.)
@pytest.mark.parametrize("kind", ["user", "pid", "net", "uts", "mnt", "cgroup"])
def test_it_has_its_own_namespace(process: Path, kind: str) -> None:
    assert (process / "ns" / kind).readlink() != Path("/proc/self/ns", kind).readlink()


def test_it_has_no_network_and_is_a_host_user_of_its_own(process: Path) -> None:
    lines = (process / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]
    expected = GUI_UID_BASE if os.geteuid() == 0 else os.geteuid()
    assert status(process)["Uid"].split() == [str(expected)] * 4


def test_it_sees_nothing_that_belongs_to_a_person(process: Path) -> None:
    """Its root has libraries, fonts and one socket; no home, no /proc, nothing to write to."""
    root = process / "root"
    found = find_spec("PySide6")
    assert found is not None and found.origin is not None
    libraries = Path(found.origin).resolve().parent
    names = {"usr", "lib", "lib64", "etc", "var", "tmp", "Xauthority"}
    if not libraries.is_relative_to("/usr"):
        # On the way to Qt's libraries, which may be anywhere, a home included, there is nothing else.
        names |= {libraries.parts[1]}
        for folder in list(libraries.parents)[:-1]:
            there = {path.name for path in (root / folder.relative_to("/")).iterdir()}
            assert there - {".X11-unix"} == {libraries.relative_to(folder).parts[0]}
    assert {path.name for path in root.iterdir()} <= names
    assert not (root / "etc/passwd").exists()
    assert not (root / "proc/self").exists()
    points = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    assert all("ro" in fields[5].split(",") for fields in points)


def test_it_is_bounded(process: Path) -> None:
    lines = (process / "limits").read_text().splitlines()[1:]
    limits = {line[:25].strip(): line[25:].split()[:2] for line in lines}
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max file size"] == [str(GUI_FILE_SIZE)] * 2
    assert limits["Max address space"] == [str(GUI_ADDRESS_SPACE)] * 2


def test_it_shows_its_qube(process: Path) -> None:
    assert (process / "cmdline").read_bytes() == b"insula-gui work\0"


def test_window_as_large_as_the_screen_is_painted_without_a_further_thread(guest: ScriptedGuest) -> None:
    """(Toolkits share large work between threads; here none can be made any more.)"""
    for n in range(10):
        guest.fill(1, 0x30C040 + n)
        guest.say(*[gui.Damage(1, x, y, 40, 880) for x in range(0, 1800, 300) for y in (0, 20)])
        guest.say(gui.Damage(1, 0, 0, 1800, 900))
        guest.wait_for(gui.Painted(1))


def test_it_does_nothing_while_nothing_happens(guest: ScriptedGuest, process: Path) -> None:
    guest.say(gui.Damage(1, 0, 0, 10, 10))
    guest.wait_for(gui.Painted(1))

    def ticks() -> int:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1.0)  # what is measured is that time goes by
    assert ticks() - before <= 1


def test_memory_of_qubes_without_a_window_is_small(screen: Desktop) -> None:
    with scripted_guests(screen, *[(f"empty{n}", 0x3465A4) for n in range(4)]) as (host, _):
        for pid in host.pids:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
            [kib] = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
            assert kib / 1024 <= MAX_PROPORTIONAL_MIB


async def test_process_made_before_anybody_asks_is_shut_in_and_has_nothing_of_a_qube(
    screen: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "DELAY_S", 0)
    where = view(screen.environment)
    async with AsyncExitStack() as ends:
        parent = await ends.enter_async_context(PreloadedParent([GUI_PROGRAM]))
        supply = Supply(parent)
        ends.push_async_callback(supply.close)

        async def start(qube: str) -> Path:
            ours, theirs = socket.socketpair()
            ends.callback(ours.close)
            memory = frames.make()
            try:
                with theirs:
                    made = await supply.start(where, Configure(qube, 0x3465A4), theirs, memory)
            finally:
                os.close(memory)
            ends.push_async_callback(made.close)
            return Path("/proc", str(made.pid))

        first = await start("work")
        async with asyncio.timeout(PATIENCE_S):
            while supply.spare_pid is None:
                await asyncio.sleep(0.01)
        waiting = Path("/proc", str(supply.spare_pid))
        assert all(status(task)["Seccomp"] == "2" for task in (waiting / "task").iterdir())
        assert "insula-frames" not in (waiting / "maps").read_text()
        assert b"work" not in (waiting / "cmdline").read_bytes()
        if os.geteuid() == 0:
            assert status(waiting)["Uid"] != status(first)["Uid"]
        assert await start("personal") == waiting
        async with asyncio.timeout(PATIENCE_S):
            while (waiting / "cmdline").read_bytes() != b"insula-gui personal\0":
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "environment",
    [{}, {"DISPLAY": "elsewhere:0"}, {"DISPLAY": ":59999"}, {"DISPLAY": ":0; true"}, {"WAYLAND_DISPLAY": "w"}],
)
def test_no_desktop_is_an_error_that_names_what_is_missing(environment: dict[str, str]) -> None:
    with pytest.raises(NoDesktop, match=r"DISPLAY|X server"):
        view(environment)
