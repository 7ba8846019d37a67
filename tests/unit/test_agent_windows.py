"""The user's session as the agent starts it: once, with a gate where calls wait, again if it fails."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from insula_agent import windows
from insula_agent.gui import server, session
from insula_agent.loop import Loop

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run/session-gate"
    monkeypatch.setattr(windows, "GATE", str(path))
    monkeypatch.setattr(session, "GATE", str(path))
    monkeypatch.setattr(windows, "PYTHON", sys.executable)
    monkeypatch.setattr(windows, "RETRY_S", 0.01)
    return path


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "session.py"
    path.write_text(f"import os, sys\nsys.path[:] = {sys.path!r}\n{text}\n")
    monkeypatch.setattr(windows, "PROGRAM", str(path))


def until(loop: Loop, path: Path, count: int = 1) -> None:
    """Run the loop until a file has so many lines."""

    def look() -> None:
        if path.exists() and path.read_text().count("\n") >= count:
            loop.stop(0)
        else:
            loop.after(0.01, look)

    look()
    loop.run()


def test_session_is_started_once_for_its_user_and_holds_the_gate(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    program(tmp_path, monkeypatch, f"open({str(log)!r}, 'a').write(sys.argv[1] + '\\n'); sys.stdin.read()")
    loop = Loop()
    started = windows.Session(loop)
    started.begin("joe")
    # There before the program is: who is told that there are windows finds where to wait.
    assert stat.S_ISFIFO(gate.stat().st_mode)
    started.begin("joe")
    until(loop, log)
    with subprocess.Popen(["cat", gate], stdout=subprocess.DEVNULL) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        os.kill(started._pid, 9)
        assert waiting.wait(120) == 0
    assert log.read_text() == "joe\n"
    os.waitpid(started._pid, 0)


def test_session_that_ends_is_started_again_some_times(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    program(tmp_path, monkeypatch, f"open({str(log)!r}, 'a').write('run\\n')")
    loop = Loop()
    windows.Session(loop).begin("joe")
    until(loop, log, 1 + windows.MAX_RETRIES)
    loop = Loop()
    loop.after(0.3, lambda: loop.stop(0))
    loop.run()
    assert log.read_text().count("\n") == 1 + windows.MAX_RETRIES


def test_gate_opened_is_gone_and_lets_everybody_go_on(gate: Path) -> None:
    """In a process of its own: the gate is its standard input."""
    opening = (
        "from insula_agent.gui import session; session.GATE = {!r}; "
        "g = session.Gate(session.take_input()); g.open(); g.open(); input()"
    )
    descriptor = windows._make_gate()
    opener = subprocess.Popen([sys.executable, "-c", opening.format(str(gate))], stdin=descriptor)
    waiting = subprocess.Popen(["cat", gate], stdout=subprocess.DEVNULL)
    os.close(descriptor)
    try:
        assert waiting.wait(120) == 0
        # (``input`` fails at once: standard input is no gate any more.)
        assert opener.wait(120) == 1
        assert not gate.exists()
    finally:
        for process in (opener, waiting):
            process.kill()
            process.wait()


HANDED = """\
from insula_agent import sockets
import _socket
line = _socket.socket(fileno=os.dup(0))
line.sendall(b"1")
said, descriptors = sockets.receive_with_descriptors(line, 1, 1)
open(LOG, "a").write(f"{sys.argv[1:]} {len(descriptors)}\\n")
if descriptors:
    line.recv(1)
    import time
    time.sleep(60)
"""


def prepared(loop: Loop, log: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> windows.Session:
    program(folder, monkeypatch, HANDED.replace("LOG", repr(str(log))))
    made = windows.Session(loop)
    made.prepare("joe", lambda: loop.stop(0))
    loop.run()
    return made


def test_session_prepared_in_a_seed_is_handed_the_gate_when_it_is_wanted(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, loop = tmp_path / "log", Loop()
    made = prepared(loop, log, tmp_path, monkeypatch)
    assert not gate.exists()
    made.begin("joe")
    assert stat.S_ISFIFO(gate.stat().st_mode)
    until(loop := Loop(), log)
    assert log.read_text() == "['joe', '--prepared'] 1\n"
    # The gate is held by the session alone.
    with subprocess.Popen(["cat", gate], stdout=subprocess.DEVNULL) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        os.kill(made._pid, 9)
        assert waiting.wait(120) == 0
    os.waitpid(made._pid, 0)


REHEARSING = """
import _socket
from insula_agent import sockets
from insula_agent.gui.session import READY, REHEARSE
line = _socket.socket(fileno=0)
line.sendall(READY)
while True:
    said, descriptors = sockets.receive_with_descriptors(line, 1, 1)
    open(LOG, "a").write(f"{said} {len(descriptors)}\\n")
    if said != REHEARSE:
        break
    line.sendall(READY)
"""


def test_session_that_is_prepared_rehearses_and_is_handed_the_gate_later(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    program(tmp_path, monkeypatch, REHEARSING.replace("LOG", repr(str(log))))
    loop = Loop()
    made = windows.Session(loop)
    made.prepare("joe", lambda: loop.stop(0))
    loop.run()
    for _ in range(2):
        loop._exit_code = None
        made.rehearse(lambda: loop.stop(0))
        loop.run()
    assert log.read_text() == "b'r' 0\nb'r' 0\n"
    made.begin("joe")
    until(Loop(), log, 3)
    assert log.read_text().endswith("b'1' 1\n")
    os.waitpid(made._pid, 0)


def test_nothing_is_rehearsed_where_no_session_is_prepared() -> None:
    loop = Loop()
    windows.Session(loop).rehearse(lambda: loop.stop(7))
    assert loop.run() == 7


def test_session_prepared_for_another_user_gives_way_to_one_of_its_own(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, loop = tmp_path / "log", Loop()
    made = prepared(loop, log, tmp_path, monkeypatch)
    monkeypatch.setattr(windows, "PREPARED", "--other")
    other = tmp_path / "other"
    program(tmp_path, monkeypatch, f"open({str(other)!r}, 'a').write(f'{{sys.argv[1:]}}\\n'); sys.stdin.read()")
    made.begin("ann")
    loop._exit_code = None
    until(loop, other)
    assert log.read_text() == "['joe', '--prepared'] 0\n"
    assert other.read_text() == "['ann']\n"
    os.kill(made._pid, 9)
    os.waitpid(made._pid, 0)


def test_seed_whose_session_cannot_be_prepared_goes_without_one(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, done = tmp_path / "log", tmp_path / "done"
    program(tmp_path, monkeypatch, "sys.exit(1)")
    loop = Loop()
    made = windows.Session(loop)
    made.prepare("joe", lambda: done.write_text("\n") and None)
    until(loop, done)
    # Whoever wants one gets it as without a seed.
    program(tmp_path, monkeypatch, f"open({str(log)!r}, 'a').write('begun\\n')")
    loop._exit_code = None
    loop.after(0.3, lambda: loop.stop(0))
    loop.run()
    made.begin("joe")
    loop._exit_code = None
    until(loop, log)
    assert gate.exists()


@pytest.mark.parametrize(
    ("size", "screen"), [((1920, 1080), "1920x1080x24"), ((1, 99999), f"640x{server.MAX_SIZE}x24")]
)
def test_server_is_as_large_as_the_hosts_screen_within_limits(size: tuple[int, int], screen: str) -> None:
    words = server.arguments(*size, 5)
    assert words[words.index("-screen") + 2] == screen
    assert words[words.index("-displayfd") + 1] == "5"
