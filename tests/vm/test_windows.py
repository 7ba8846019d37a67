"""Windows of real qubes on a real X server: in their frames, with their keys, through every end of what shows them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from insula.client.command import command_line
from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.model.errors import QubesException, QubesNoDesktopError
from insula.rpc.client import run_collect
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, Picture, Window, desktop
from insula.testing.guest import TEMPLATE, create_app_qube, run, sh
from insula.testing.image_owner import ASK_FOR_IMAGE, IMAGE_OWNER, SIDE_X, SIDE_Y
from insula.testing.prompt_program import running_prompt
from insula.testing.scripted_policy_agent import ScriptedAgent
from insula.testing.sound_server import loud, share, sound_server
from insula_proto.sound import FRAME, RATE

from .conftest import discard

pytestmark = [pytest.mark.vm, pytest.mark.desktop]

INSULA = str(Path(sys.executable).with_name("insula"))
SHOWN_TIMEOUT_S = 120.0
"""From asking until a program has drawn itself: seconds, more on a busy machine."""
COPY_PATIENCE_S = 15.0
"""A little more than the host waits for a guest's clipboard."""
POLL_S = 0.1
BLUE, RED = 0x3465A4, 0xCC0000
COLOURS = {"test-blue": BLUE, "test-red": RED}
GROUND = {"test-blue": 0x102030, "test-red": 0x302010}
"""What the terminals of these tests are filled with."""


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1280, 800) as shown:
        yield shown


@pytest.fixture(scope="module")
def qubes(daemon: DaemonProcess) -> Iterator[tuple[str, str]]:
    """Two that run, of their colours."""

    async def make() -> None:
        for name, label in (("test-blue", "blue"), ("test-red", "red")):
            await create_app_qube(daemon.client, name, label)
        await asyncio.gather(*(daemon.client.start(name) for name in COLOURS))

    async def remove() -> None:
        for name in COLOURS:
            await discard(daemon, name)

    asyncio.run(make())
    yield "test-blue", "test-red"
    asyncio.run(remove())


def desktop_of(screen: Desktop) -> dict[str, str]:
    return {"DISPLAY": screen.display}


@contextlib.asynccontextmanager
async def terminal(
    daemon: DaemonProcess, screen: Desktop, qube: str, *, ground: int | None = None, place: str = "40x8"
) -> AsyncIterator[Window]:
    """A terminal of a qube that writes down what is typed in it; the window, drawn."""
    await daemon.client.show_windows(qube, desktop_of(screen))
    colour = f"#{GROUND[qube] if ground is None else ground:06x}"
    keep = "cat >/tmp/typed"
    words = [
        "xterm",
        "-bg",
        colour,
        "-fg",
        colour,
        "-cr",
        colour,
        "-b",
        "0",
        "-geometry",
        place,
        "-e",
        "sh",
        "-c",
        keep,
    ]
    call = asyncio.create_task(
        run_collect(daemon.paths.rpc_socket(qube), command_line(words, "qubes.VMExecGUI"), user="user", timeout=600)
    )
    try:
        yield await drawn(screen, qube, call)
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: not screen.windows(rf"^\[{qube}\]"), f"a window of {qube} stays")


async def drawn(screen: Desktop, qube: str, call: asyncio.Task[tuple[int, bytes, bytes]] | None = None) -> Window:
    """The qube's window, once the program has drawn in it."""
    found: list[Window] = []

    def is_drawn() -> bool:
        if call is not None and call.done():
            raise AssertionError(f"the program ended: {call.result()}")
        found[:] = screen.windows(rf"^\[{qube}\]")
        return bool(found) and content(screen.picture(), found[0]).share(0xFFFFFF) < 0.5

    await until(is_drawn, f"no window of {qube}")
    return found[0]


async def until(is_so: object, otherwise: str) -> None:
    assert callable(is_so)
    try:
        async with asyncio.timeout(SHOWN_TIMEOUT_S):
            while not is_so():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(otherwise) from None


def content(picture: Picture, window: Window) -> Picture:
    place = WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))
    return picture.part(place.x, place.y, place.width, place.height)


def ring(picture: Picture, window: Window) -> list[int]:
    """The pixels all around: the outermost line of the window, title included."""
    right, bottom = window.x + window.width - 1, window.y + window.height - 1
    rows = [picture.pixel(x, y) for x in range(window.x, right + 1) for y in (window.y, bottom)]
    return rows + [picture.pixel(x, y) for y in range(window.y, bottom + 1) for x in (window.x, right)]


def gui_process(daemon: DaemonProcess, qube: str) -> int:
    """The process that shows the qube's windows, among those of this daemon's children."""
    assert daemon.process is not None
    for child in children(daemon.process.pid):
        for process in children(child):
            title = Path(f"/proc/{process}/cmdline").read_bytes().rstrip(b"\0 ")
            if title == f"insula-gui {qube}".encode():
                return process
    raise AssertionError(f"nothing shows the windows of {qube}")


def children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


async def typed(daemon: DaemonProcess, qube: str) -> str:
    return await sh(daemon, qube, "cat /tmp/typed")


async def test_window_is_in_the_frame_of_its_qube_and_shows_what_the_program_drew(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, _ = qubes
    async with terminal(daemon, screen, blue) as window:
        screen.park()
        await until(lambda: content(screen.picture(), window).share(GROUND[blue]) > 0.99, "not what was drawn")
        assert set(ring(screen.picture(), window)) == {BLUE}


async def test_keys_reach_the_qube_whose_window_has_the_focus_and_no_other(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, red = qubes
    async with terminal(daemon, screen, blue) as one, terminal(daemon, screen, red) as two:
        await until(
            lambda: RED in {pixel for window in (one, two) for pixel in ring(screen.picture(), window)},
            "no frame of the red one",
        )
        screen.activate(one.number)
        screen.type("for blue\n")
        await until_typed(daemon, blue, "for blue")
        screen.activate(two.number)
        screen.type("for red\n")
        await until_typed(daemon, red, "for red")
        assert (await typed(daemon, blue), await typed(daemon, red)) == ("for blue", "for red")


async def until_typed(daemon: DaemonProcess, qube: str, text: str) -> None:
    async with asyncio.timeout(SHOWN_TIMEOUT_S):
        while await typed(daemon, qube) != text:
            await asyncio.sleep(POLL_S)


async def test_window_that_is_all_of_anothers_colour_stays_in_its_own_frame(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    """MC-37: whatever a qube draws lies inside what it cannot draw."""
    _, red = qubes
    async with terminal(daemon, screen, red, ground=BLUE) as window:
        screen.park()
        await until(lambda: content(screen.picture(), window).share(BLUE) > 0.99, "not what was drawn")
        assert set(ring(screen.picture(), window)) == {RED}


async def test_killed_process_is_replaced_and_the_program_has_not_noticed(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    """MC-47."""
    blue, _ = qubes
    async with terminal(daemon, screen, blue):
        program = await sh(daemon, blue, "pidof xterm")
        os.kill(gui_process(daemon, blue), signal.SIGKILL)
        await until(lambda: not screen.windows(rf"^\[{blue}\]"), "the window stays")
        window = await drawn(screen, blue)
        await until(lambda: content(screen.picture(), window).share(GROUND[blue]) > 0.99, "not what was drawn")
        assert await sh(daemon, blue, "pidof xterm") == program
        screen.activate(window.number)
        screen.type("again\n")
        await until_typed(daemon, blue, "again")


async def test_paused_qube_has_no_window_and_has_it_again(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, _ = qubes
    async with terminal(daemon, screen, blue):
        await daemon.client.pause(blue)
        await until(lambda: not screen.windows(rf"^\[{blue}\]"), "the window stays")
        await daemon.client.unpause(blue)
        await drawn(screen, blue)


async def test_later_daemon_shows_the_windows_there_were(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, _ = qubes
    await daemon.client.show_windows(blue, desktop_of(screen))
    # Not a command of ours: that would end with the daemon.
    starts = "DISPLAY=:0 setsid xterm -bg '#102030' -fg '#102030' >/dev/null 2>&1 & sleep 0.1"
    assert (await run(daemon, blue, f". /run/insula/session-env 2>/dev/null; {starts}")).code == 0
    await drawn(screen, blue)
    daemon.kill()
    await until(lambda: not screen.windows(rf"^\[{blue}\]"), "the window stays")
    await daemon.start()
    await drawn(screen, blue)
    await run(daemon, blue, "pkill xterm")
    await until(lambda: not screen.windows(rf"^\[{blue}\]"), "the window stays")


async def test_killed_qube_leaves_no_window(daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]) -> None:
    _, red = qubes
    await daemon.client.show_windows(red, desktop_of(screen))
    words = ["xterm", "-bg", "black"]
    call = asyncio.create_task(
        run_collect(daemon.paths.rpc_socket(red), command_line(words, "qubes.VMExecGUI"), user="user", timeout=600)
    )
    await drawn(screen, red, call)
    await daemon.client.kill(red)
    await until(lambda: not screen.windows(rf"^\[{red}\]"), "the window stays")
    await asyncio.gather(call, return_exceptions=True)
    await daemon.client.start(red)


async def test_mc50_notification_of_a_program_is_shown_under_the_name_of_its_qube(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, red = qubes
    await daemon.client.show_windows(blue, desktop_of(screen))
    service = "org.freedesktop.Notifications"
    words = ["busctl", "--user", "call", service, "/org/freedesktop/Notifications", service, "Notify", "susssasa{sv}i"]
    words += ["mail", "0", "", "New letter", "<b>from</b> somebody", "0", "1", "urgency", "y", "2"]
    words += ["--", "-1"]
    imitation = f"printf '1 critical\\0{blue}\\0[{blue}] says\\0x' | qrexec-client-vm dom0 insula.Notify"
    with running_prompt(screen, daemon.paths.runtime.parent):
        code, out, err = await run_collect(
            daemon.paths.rpc_socket(blue), command_line(words, "qubes.VMExecGUI"), user="user", timeout=SHOWN_TIMEOUT_S
        )
        assert (code, out.split()[:1]) == (0, [b"u"]), err
        await until(lambda: bool(screen.windows(f"^Insula: {blue}$")), "it is not shown")
        [window] = screen.windows(f"^Insula: {blue}$")
        screen.park()
        await until(lambda: set(ring(screen.picture(), window)) == {BLUE}, "not in the colour of its qube")
        assert (await run(daemon, red, imitation)).code == 0
        await until(lambda: bool(screen.windows(f"^Insula: {red}$")), "it is not shown")
        [window] = screen.windows(f"^Insula: {red}$")
        await until(lambda: set(ring(screen.picture(), window)) == {RED}, "not in the colour of its qube")


async def test_picture_of_a_qubes_window_is_given_to_another_qube(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str], tmp_path: Path
) -> None:
    blue, red = qubes
    folders = {"INSULA_DATA_DIR": str(daemon.paths.data), "INSULA_RUNTIME_DIR": str(daemon.paths.runtime)}
    picture = tmp_path / "window.png"
    async with terminal(daemon, screen, blue):
        taking = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "insula.cli.main", "screenshot", blue, "-o", str(picture), "--to", red),
            env={**screen.environment, **folders, "HOME": str(tmp_path)},
        )
        assert await taking.wait() == 0
    seen = await run(daemon, red, "base64 -w 0 QubesIncoming/dom0/window.png")
    assert base64.b64decode(seen.out) == picture.read_bytes()


async def until_told(screen: Desktop, told: ScriptedAgent, keys: str, words: str) -> None:
    """Press keys until that is said: a guest on a busy machine may not answer in the time that a user waits."""
    async with asyncio.timeout(2 * SHOWN_TIMEOUT_S):
        while not any(words in each.text for each in told.remarks):
            screen.key(keys)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COPY_PATIENCE_S):
                    while not any(words in each.text for each in told.remarks):
                        await asyncio.sleep(POLL_S)


async def test_picture_in_the_clipboard_of_a_qube_is_pasted_into_another_as_a_file_of_its_own(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    """MC-53: taken apart and made by real guests."""
    blue, red = qubes
    told = ScriptedAgent(daemon.paths.policy_agent_socket)
    await told.start()
    words = ["python3", "-c", IMAGE_OWNER]
    try:
        async with terminal(daemon, screen, red) as target:
            await daemon.client.show_windows(blue, desktop_of(screen))
            owning = asyncio.create_task(
                run_collect(
                    daemon.paths.rpc_socket(blue), command_line(words, "qubes.VMExecGUI"), user="user", timeout=600
                )
            )
            try:
                source = await drawn(screen, blue, owning)
                screen.activate(source.number)
                size = 8 + 4 * SIDE_X * SIDE_Y
                await until_told(screen, told, "ctrl+shift+c", f"{size} bytes copied")
                screen.activate(target.number)
                await until_told(screen, told, "ctrl+shift+v", "pasted")
                seen = ""
                async with asyncio.timeout(SHOWN_TIMEOUT_S):
                    while not seen:
                        ask = f". /run/insula/session-env; python3 -c '{ASK_FOR_IMAGE}'"
                        seen = (await run(daemon, red, ask)).text
                assert seen == f"{SIDE_X} {SIDE_Y}"
            finally:
                owning.cancel()
                await asyncio.gather(owning, return_exceptions=True)
                await run(daemon, blue, "pkill -f xcffib")
    finally:
        await told.close()


async def test_launcher_starts_what_is_typed(daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]) -> None:
    blue, _ = qubes
    folders = {"INSULA_DATA_DIR": str(daemon.paths.data), "INSULA_RUNTIME_DIR": str(daemon.paths.runtime)}
    launching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "insula.cli.main", "menu"), env={**screen.environment, **folders}
    )
    await until(lambda: bool(screen.windows("^Insula: start")), "no launcher")
    launcher = screen.windows("^Insula: start")[0]
    await until(lambda: screen.focused() == launcher.number, "the launcher has no focus")
    screen.type(f"term {blue}")
    screen.key("Return")
    assert await launching.wait() == 0
    await until(lambda: bool(screen.windows(rf"^\[{blue}\]")), f"no window of {blue}")
    await run(daemon, blue, "pkill xterm")
    await until(lambda: not screen.windows(rf"^\[{blue}\]"), "the window stays")


async def test_program_in_a_disposable_is_shown_and_all_of_it_gone_with_the_command(
    daemon: DaemonProcess, screen: Desktop
) -> None:
    """``insula run --dispvm --gui``."""

    async def names() -> set[str]:
        return {row.name for row in await daemon.client.list_qubes() if row.klass == "DispVM"}

    before = await names()
    command = await asyncio.create_subprocess_exec(
        *(INSULA, "run", "--gui", f"--dispvm={TEMPLATE}", "xterm", "-bg", "#203010", "-fg", "#203010", "-b", "0"),
        *("-cr", "#203010", "-e", "sleep", "1000"),
        env={**daemon.environment, **screen.environment},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        window = await drawn(screen, "disp[0-9]+")
        screen.park()
        await until(lambda: content(screen.picture(), window).share(0x203010) > 0.99, "not what was drawn")
        [name] = {name for name in await names() if screen.windows(rf"^\[{name}\]")}
        label = (await daemon.client.get_property("label", name)).value
        assert set(ring(screen.picture(), window)) == {int((await daemon.client.list_labels())[label], 16)}
    finally:
        command.terminate()
        _, said = await command.communicate()
    await until(lambda: not screen.windows(r"^\[disp"), f"its window stays: {said!r}")
    async with asyncio.timeout(SHOWN_TIMEOUT_S):
        while await names() - before:
            await asyncio.sleep(POLL_S)


PERIOD_FRAMES = 48
HERTZ = RATE / PERIOD_FRAMES
"""Of a tone; as a square wave, which a guest makes quickly: four fifths of it are at that frequency."""
TONE = f"""python3 -c "
import sys
half = {PERIOD_FRAMES // 2}
sys.stdout.buffer.write((b'\\0\\x20' * 2 * half + b'\\0\\xe0' * 2 * half) * 3000)" >/tmp/tone"""
HEARD_BYTES = 5 * RATE * FRAME
LISTEN = f"timeout 120 parec --raw --format=s16le --rate=48000 --channels=2 --latency-msec=50 | head -c {HEARD_BYTES}"
"""Five seconds, however long the qube's sound server takes to begin."""
PLAY = "paplay --raw --format=s16le --rate=48000 --channels=2 /tmp/tone"


async def test_mc18_tone_of_a_program_is_heard_under_the_name_of_its_qube(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, _ = qubes
    with sound_server(microphone=HERTZ) as speakers:
        await daemon.client.show_windows(blue, {**desktop_of(screen), **speakers.environment})
        await sh(daemon, blue, TONE)
        assert not (await run(daemon, blue, "pgrep pulseaudio")).out, "a sound server runs though nobody plays"
        playing = asyncio.create_task(sh(daemon, blue, PLAY))
        await until(lambda: speakers.streams() == [blue], "no stream of the qube's")
        await playing
        await until(lambda: not speakers.streams(), "the stream stays though nobody plays")
        heard = loud(bytes(speakers.recorded))
        assert tenths_with_tone(heard) >= 5, len(heard)
        assert speakers.recordings() == []
        await daemon.client.attach_microphone(blue)
        try:
            heard = (await run(daemon, blue, LISTEN)).out
        finally:
            await daemon.client.detach_microphone(blue)
        assert tenths_with_tone(loud(heard)) >= 5, len(heard)
        await until(lambda: speakers.recordings() == [], "it records on")


def tenths_with_tone(heard: bytes) -> int:
    """Tenths of a second; what a guest without CPU leaves out is silence between, not another tone."""
    size = RATE // 10 * FRAME
    pieces = [heard[place : place + size] for place in range(0, len(heard) - size, size)]
    return len([piece for piece in pieces if share(piece, HERTZ) > 0.6])


async def test_applications_of_a_template_are_known_before_it_was_ever_started(daemon: DaemonProcess) -> None:
    assert "XTerm" in [each["name"] for each in await daemon.client.applications(TEMPLATE)]


async def test_no_desktop_and_no_windows_are_said(
    daemon: DaemonProcess, screen: Desktop, qubes: tuple[str, str]
) -> None:
    blue, _ = qubes
    with pytest.raises(QubesNoDesktopError, match="no X server listens"):
        await daemon.client.show_windows(blue, {"DISPLAY": ":987"})
    await daemon.client.set_feature(blue, "gui", "")
    with pytest.raises(QubesException, match="feature gui is off"):
        await daemon.client.show_windows(blue, desktop_of(screen))
    await daemon.client.remove_feature(blue, "gui")
