"""Windows of qubes as the daemon sees them: asked for, replaced when their process dies, gone with the machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from insula.daemon import windows as module
from insula.daemon.windows import DESKTOP_KEY, ENABLED_KEY, RESTARTS, Windows
from insula.gui.control import Configure
from insula.gui.spawn import NoDesktop
from insula.hal.driver import MachineSpec
from insula.hal.fake import FakeDriver, FakeHost, FakeMachine
from insula.model.errors import QubesException, QubesNoDesktopError
from insula.model.features import set_feature
from insula.model.names import QubeName
from insula.model.properties import set_property
from insula.model.system import System
from insula.preload.messages import View
from insula.testing.fake_session import FakeSession
from insula.testing.systems import TEMPLATE, WORK, all_halted, small_system

pytestmark = pytest.mark.timeout(300)

DESKTOP = {"DISPLAY": ":3"}
OTHER = {"DISPLAY": ":4"}


class FakeGui:
    def __init__(
        self, configure: Configure, channel: socket.socket, desktop: Mapping[str, str], *, greets: bool
    ) -> None:
        self.configure = configure
        self._greets = greets
        self.desktop = desktop
        self._channel = channel.dup()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.expected = 0

    def expect(self) -> None:
        self.expected += 1

    @property
    def is_running(self) -> bool:
        return not self._ended.done()

    async def wait_greeted(self) -> None:
        if not self._greets:
            await asyncio.Event().wait()

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        self.die("closed")

    def die(self, why: str = "died") -> None:
        if not self._ended.done():
            self._ended.set_result(why)
            self._channel.close()


class FakeLaunch:
    def __init__(self) -> None:
        self.started: list[FakeGui] = []
        self.fails = False
        self.greets = True
        self._changed = asyncio.Event()

    async def __call__(
        self,
        configure: Configure,
        channel: socket.socket,
        memory: int,
        environment: Mapping[str, str] | None = None,
    ) -> FakeGui:
        assert os.pread(memory, 1, 0) == b"\0"
        assert environment is not None
        self._changed.set()
        if self.fails:
            raise NoDesktop("no X server listens")
        self.started.append(FakeGui(configure, channel, environment, greets=self.greets))
        return self.started[-1]

    async def until(self, count: int) -> FakeGui:
        while len(self.started) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.started[-1]


class MemoryStore:
    def __init__(self, system: System) -> None:
        self.system = system

    def commit(self, system: System) -> None:
        self.system = system


@dataclass
class World:
    windows: Windows
    launch: FakeLaunch
    machine: FakeMachine
    session: FakeSession
    store: MemoryStore
    note: Path
    told: list[tuple[str | None, str]]

    async def show(self, desktop: Mapping[str, str] | None = DESKTOP) -> None:
        await self.windows.show(WORK, self.machine, self.session, desktop)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    def view(desktop: Mapping[str, str]) -> View:
        if "DISPLAY" not in desktop:
            raise NoDesktop("DISPLAY is not set")
        return View((), (), (), 0)

    monkeypatch.setattr(module, "view", view)
    monkeypatch.setattr(module, "RESTART_DELAY_S", 0)
    driver = FakeDriver(FakeHost())
    (tmp_path / "work").mkdir()
    nothing = tmp_path / "nothing"
    nothing.touch()
    spec = MachineSpec("work", UUID(int=7), 7, 400, 1, nothing, nothing, "", (), tmp_path / "work")
    machine = await driver.define(spec)
    await machine.start_paused()
    await machine.resume()
    ours, theirs = socket.socketpair()
    session, store, launch = FakeSession({}, ours), MemoryStore(small_system()), FakeLaunch()
    told: list[tuple[str | None, str]] = []
    note = tmp_path / "desktop.json"
    windows = Windows(store, launch, note, lambda name, text: told.append((name, text)), {})
    yield World(windows, launch, machine, session, store, note, told)
    await windows.close()
    await machine.kill()
    await session.close()
    theirs.close()


async def test_shown_qube_has_memory_is_told_and_in_its_colour(world: World) -> None:
    assert world.windows.keys_of(WORK) == {}
    assert not await world.machine.has_frames()
    assert not world.windows.are_used
    await world.show()
    assert world.windows.are_used
    assert await world.machine.has_frames()
    assert world.session.keys == {ENABLED_KEY: "1"}
    assert world.windows.keys_of(WORK) == {ENABLED_KEY: "1", DESKTOP_KEY: "1"}
    [gui] = world.launch.started
    assert (gui.configure.qube, gui.configure.colour, gui.desktop) == ("work", 0x3465A4, DESKTOP)


async def test_qube_is_told_that_there_is_a_desktop_if_there_is(world: World) -> None:
    assert world.windows.keys_of(WORK) == {}
    await world.show()
    await world.windows.end(WORK)
    assert world.windows.keys_of(WORK) == {DESKTOP_KEY: "1"}


async def test_shown_twice_is_one_process_elsewhere_another(world: World) -> None:
    await world.show()
    await world.show()
    await world.show(None)
    assert len(world.launch.started) == 1
    await world.show(OTHER)
    first, second = world.launch.started
    assert (first.is_running, second.is_running, second.desktop) == (False, True, OTHER)


async def test_window_of_a_program_the_user_starts_is_expected_and_none_that_only_comes_back(world: World) -> None:
    await world.show()
    await world.show()
    assert world.launch.started[0].expected == 2
    await world.windows.show_again(WORK, world.machine, world.session)  # type: ignore[arg-type]
    assert world.launch.started[0].expected == 2


async def test_keyboard_is_the_desktops_unless_somebody_set_one(world: World) -> None:
    await world.show()
    assert world.launch.started[0].configure.keyboard == ""
    world.store.system = set_property(world.store.system, WORK, "keyboard_layout", "de+neo+", all_halted)
    await world.windows.hide(WORK)
    await world.show()
    assert world.launch.started[1].configure.settings().keyboard == "de+neo+"


async def test_machine_with_a_screen_of_its_own_is_shown_without_asking_its_guest_anything(world: World) -> None:
    """MC-49."""
    world.machine._spec = replace(world.machine.spec, has_display=True)
    await world.show()
    [gui] = world.launch.started
    assert gui.configure.is_emulated
    assert world.session.keys == {}
    assert not await world.machine.has_frames()
    gui.die()
    again = await world.launch.until(2)
    assert again.configure.is_emulated


async def test_no_desktop_is_refused_before_the_qube_is_touched(world: World) -> None:
    with pytest.raises(QubesNoDesktopError, match="DISPLAY is not set"):
        await world.show({})
    assert not await world.machine.has_frames()
    assert world.session.keys == {}


@pytest.mark.parametrize("owner", [WORK, TEMPLATE])
async def test_feature_gui_off_is_refused(world: World, owner: QubeName) -> None:
    world.store.commit(set_feature(world.store.system, owner, "gui", "", all_halted))
    with pytest.raises(QubesException, match="feature gui is off"):
        await world.show()


async def test_process_that_dies_is_replaced_with_what_holds_then(world: World) -> None:
    """MC-47."""
    await world.show()
    world.store.commit(set_property(world.store.system, WORK, "label", "green", all_halted))
    world.launch.started[0].die()
    assert (await world.launch.until(2)).configure.colour == 0x73D216


async def test_process_that_keeps_dying_is_given_up_and_told(world: World) -> None:
    await world.show()
    for count in range(1, RESTARTS + 1):
        (await world.launch.until(count)).die()
    (await world.launch.until(RESTARTS + 1)).die()
    while not world.told:
        await asyncio.sleep(0)
    assert world.told == [(WORK, "its windows are gone: what shows them keeps ending")]
    # Whoever asks again gets windows again.
    await world.show()
    assert world.launch.started[-1].is_running


async def test_desktop_that_went_is_not_tried_for_ever(world: World) -> None:
    await world.show()
    world.launch.fails = True
    world.launch.started[0].die()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(world.launch.started) == 1
    world.launch.fails = False
    await world.show()
    assert len(world.launch.started) == 2


async def test_shown_again_while_the_first_try_fails_ends_with_its_machine_all_the_same(world: World) -> None:
    world.launch.fails = True
    first, second = asyncio.create_task(world.show()), asyncio.create_task(world.show(OTHER))
    with pytest.raises(QubesException, match="cannot be shown"):
        await first
    world.launch.fails = False
    await second
    [gui] = world.launch.started
    assert (gui.is_running, gui.desktop) == (True, OTHER)
    await world.windows.end(WORK)
    assert not gui.is_running


async def test_changed_label_shows_windows_anew(world: World) -> None:
    await world.show()
    world.store.commit(set_property(world.store.system, WORK, "label", "red", all_halted))
    await world.windows.changed(WORK)
    assert (await world.launch.until(2)).configure.colour == 0xCC0000


async def test_qube_that_stands_still_is_not_shown_until_it_goes_on(world: World) -> None:
    await world.show()
    await world.windows.hide(WORK)
    assert not world.launch.started[0].is_running
    await world.windows.show_again(WORK, world.machine, world.session)
    assert world.launch.started[1].is_running


async def test_agent_that_did_not_notice_is_left_alone_for_a_moment_until_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GREET_S", 0.02)
    world.launch.greets = False
    await world.show()
    await world.windows.hide(WORK)
    await world.windows.show_again(WORK, world.machine, world.session)
    await world.launch.until(4)
    world.launch.greets = True
    last = await world.launch.until(5)
    await asyncio.sleep(0.3)
    assert last.is_running
    assert [gui.is_running for gui in world.launch.started] == [False, False, False, False, True]


async def test_machine_that_is_gone_has_no_windows_left(world: World) -> None:
    await world.show()
    await world.windows.end(WORK)
    assert not world.launch.started[0].is_running
    assert ENABLED_KEY not in world.windows.keys_of(WORK)
    await world.windows.show_again(WORK, world.machine, world.session)
    assert len(world.launch.started) == 1


async def test_later_daemon_shows_them_where_they_were(world: World) -> None:
    await world.show()
    await world.windows.close()
    assert json.loads(world.note.read_text()) == DESKTOP
    later = Windows(world.store, world.launch, world.note, lambda *_: None, {"DISPLAY": ":9"})
    await later.adopt(WORK, world.machine)
    assert later.keys_of(WORK) == {ENABLED_KEY: "1", DESKTOP_KEY: "1"}
    await later.show_again(WORK, world.machine, world.session)
    assert (len(world.launch.started), world.launch.started[1].desktop) == (2, DESKTOP)
    await later.close()


async def test_adopted_machine_without_windows_stays_so(world: World) -> None:
    # One that waited to be somebody has had frame memory from its beginning.
    os.close(await world.machine.open_frames())
    await world.windows.adopt(WORK, world.machine)
    await world.windows.show_again(WORK, world.machine, world.session)
    assert world.launch.started == []


async def test_damaged_note_is_as_good_as_none(world: World) -> None:
    world.note.write_text('{"PATH": "/"}')
    later = Windows(world.store, world.launch, world.note, lambda *_: None, {"DISPLAY": ":9", "HOME": "/root"})
    await later.show(WORK, world.machine, world.session)
    assert world.launch.started[0].desktop == {"DISPLAY": ":9"}
    await later.close()
