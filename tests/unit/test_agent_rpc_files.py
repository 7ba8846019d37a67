"""The service files the agent brings along."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.templates.agent_package import PORT_SERVICES, SAME_SERVICES
from insula_agent.date_time import parse
from insula_proto import vmexec
from insula_proto.services import parse_settings

FOLDER = Path(__file__).parents[2] / "src" / "insula_agent" / "rpc"
ECHO = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]))"
SERVICES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
ALL_SERVICES = sorted([*SERVICES, *SAME_SERVICES])
AS_ROOT = (
    "insula.Update",
    "qubes.PostInstall",
    "qubes.ResizeDisk",
    "qubes.SetDateTime",
    "qubes.SyncNtpClock",
    "qubes.VMRootExec",
    "qubes.VMRootShell",
)
AFTER_LOGIN = ("qubes.OpenInVM", "qubes.OpenURL", "qubes.StartApp", "qubes.VMExecGUI")


def run(
    name: str, *arguments: bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "INSULA_LIBRARY": str(FOLDER.parents[1]), **(env or {})}
    return subprocess.run(
        [FOLDER / name, *arguments], input=stdin, env=environment, capture_output=True, check=False, timeout=120
    )


@pytest.mark.parametrize("name", SERVICES)
def test_service_file_is_executable_and_says_its_name(name: str) -> None:
    path = FOLDER / name
    assert path.stat().st_mode & 0o111 == 0o111
    assert path.read_text().splitlines()[1].startswith(f"# {name}")


@pytest.mark.parametrize("name", ALL_SERVICES)
def test_exactly_these_services_are_root_whoever_calls(name: str) -> None:
    settings = FOLDER / "config" / name
    is_root = settings.exists() and parse_settings(settings.read_text()).force_user == "root"
    assert is_root == (name in AS_ROOT)


def test_settings_are_understood_and_belong_to_a_service() -> None:
    for path in (FOLDER / "config").iterdir():
        assert parse_settings(path.read_text()).wait_for_session == (path.name in AFTER_LOGIN)
        assert path.name.partition("+")[0] in (*ALL_SERVICES, *PORT_SERVICES)


@pytest.mark.parametrize(
    "argument", [b"-x", b"--help", b"$HOME", b"`id`", b"$(id)", b"*", b"a b", b"'", b'"', b"\\n", b"\n\n", b"", b";"]
)
def test_vmexec_argument_reaches_program_unchanged(argument: bytes) -> None:
    """MC-17: the handler echoes its vector."""
    encoded = vmexec.encode([sys.executable.encode(), b"-S", b"-E", b"-c", ECHO.encode(), argument, b"end"])
    done = run("qubes.VMExec", encoded)
    assert done.stdout == argument + b"\0end"
    assert done.returncode == 0


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\0", b"\1")), max_size=4))
def test_vmexec_any_arguments_reach_program_unchanged(arguments: list[bytes]) -> None:
    """MC-17."""
    encoded = vmexec.encode([b"printf", b"%s|", *arguments])
    assert run("qubes.VMExec", encoded).stdout == b"".join(arg + b"|" for arg in arguments or [b""])


@pytest.mark.parametrize("bad", [b"", b"a b", b"-", b"true-", b"true+-2f", b"true+-00", b"true+$HOME", b"+", b"+x"])
def test_vmexec_not_encoded_is_125(bad: bytes) -> None:
    """MC-16."""
    assert run("qubes.VMExec", bad).returncode == 125


def test_vmexec_missing_program_is_127() -> None:
    assert run("qubes.VMExec", b"no.such.program.here").returncode == 127


def test_vmexec_exit_code_is_passed_on() -> None:
    assert run("qubes.VMExec", vmexec.encode([b"sh", b"-c", b"exit 7"])).returncode == 7


@pytest.mark.parametrize("name", ["qubes.VMShell", "qubes.VMRootShell"])
def test_vmshell_text_after_a_command_is_its_input(name: str) -> None:
    done = run(name, stdin=b"head -c 5; exit 3\nhello")
    assert (done.stdout, done.returncode) == (b"hello", 3)


def test_getdate_has_the_published_lengths() -> None:
    seconds, nanoseconds = run("qubes.GetDate").stdout, run("qubes.GetDate", b"nanoseconds").stdout
    assert (len(seconds), len(nanoseconds)) == (26, 36)
    assert abs(parse(seconds) - time.time()) < 10
    assert nanoseconds.endswith(b"+00:00\n")
    assert nanoseconds[19:20] == b","


def test_setdatetime_line_that_is_none_changes_nothing() -> None:
    before = time.time()
    done = run("qubes.SetDateTime", stdin=b"tomorrow\n")
    assert done.returncode == 1
    assert abs(time.time() - before) < 60


def test_setdatetime_right_clock_is_left_alone() -> None:
    """Setting it would need rights; nothing is tried within 2 s."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime()).encode()
    assert run("qubes.SetDateTime", stdin=now).returncode == 0


def fake_resize2fs(tmp_path: Path) -> dict[str, str]:
    """Two disks, and a resize2fs that says what it was called with."""
    for disk, serial in {"vdx": "root", "vdy": "private", "vdz": "volatile"}.items():
        (tmp_path / "block" / disk).mkdir(parents=True)
        (tmp_path / "block" / disk / "serial").write_text(serial)
    tool = tmp_path / "bin" / "resize2fs"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "INSULA_BLOCK": str(tmp_path / "block")}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """All of PATH: whether this machine has a chronyc is not what is tested. Tools write down what they are asked."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("rm", "seq", "touch"):
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {name} $* >> {folder}/asked\n{script}\n")
    path.chmod(0o755)


def sync_clock(tools: Path) -> tuple[int, list[str]]:
    env = {"PATH": str(tools), "INSULA_SYNCHRONIZED": str(tools / "synchronized")}
    ran = run("qubes.SyncNtpClock", env=env)
    return ran.returncode, (tools / "asked").read_text().splitlines()


def test_syncntpclock_waits_until_timesyncd_has_set_the_clock(tools: Path) -> None:
    """What an earlier run left behind does not count, even if its time stamp is of a clock that was ahead."""
    synchronized = tools / "synchronized"
    synchronized.touch()
    os.utime(synchronized, (2**31, 2**31))
    tool(tools, "systemctl", f'[ "$1" != restart ] || {{ [ ! -e {synchronized} ] && touch {synchronized}; }}')
    code, asked = sync_clock(tools)
    assert code == 0
    assert asked == ["systemctl restart systemd-timesyncd.service", "systemctl -q is-active systemd-timesyncd.service"]


def test_syncntpclock_time_that_does_not_come_is_1(tools: Path) -> None:
    tool(tools, "systemctl", "")
    tool(tools, "sleep", "")
    code, asked = sync_clock(tools)
    assert (code, asked.count("sleep 1")) == (1, 30)


def test_syncntpclock_where_the_service_is_off_is_2(tools: Path) -> None:
    """The restart of a unit whose condition does not hold succeeds."""
    tool(tools, "systemctl", '[ "$1" = restart ]')
    assert sync_clock(tools)[0] == 2


def test_timesyncd_runs_only_where_the_service_is_on() -> None:
    units = FOLDER.parent / "rootfs/usr/lib/systemd/system"
    on = "ConditionPathExists=/run/qubes-service/clocksync\n"
    assert on in (units / "systemd-timesyncd.service.d/50-insula.conf").read_text()
    assert on in (units / "insula-clocksync.service").read_text()


@pytest.mark.parametrize(("disk", "device"), [(b"root", b"/dev/vdx\n"), (b"private", b"/dev/vdy\n")])
def test_resizedisk_grows_the_disk_of_that_name(tmp_path: Path, disk: bytes, device: bytes) -> None:
    env = fake_resize2fs(tmp_path)
    assert run("qubes.ResizeDisk", stdin=disk + b"\n", env=env).stdout == device
    assert run("qubes.ResizeDisk", disk, env=env).stdout == device


@pytest.mark.parametrize("disk", [b"", b"volatile", b"../vda", b"/dev/vda", b"-f", b"root private", b"*"])
def test_resizedisk_other_names_refused(tmp_path: Path, disk: bytes) -> None:
    done = run("qubes.ResizeDisk", stdin=disk + b"\n", env=fake_resize2fs(tmp_path))
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("key", [None, b"", b"0"])
def test_waitforsession_without_windows_ends_at_once(tmp_path: Path, key: bytes | None) -> None:
    (tmp_path / "insula/keys").mkdir(parents=True)
    if key is not None:
        (tmp_path / "insula/keys/qubes-gui-enabled").write_bytes(key)
    done = run("qubes.WaitForSession", stdin=b"user\n", env={"INSULA_RUN": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, b"")


def test_waitforsession_asks_the_host_for_windows_where_it_has_a_desktop(tmp_path: Path) -> None:
    keys = tmp_path / "insula/keys"
    keys.mkdir(parents=True)
    (keys / "insula-desktop").write_bytes(b"1")
    asked = tmp_path / "asked"
    client = tmp_path / "qrexec-client-vm"
    client.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    client.chmod(0o755)
    env = {"INSULA_RUN": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run("qubes.WaitForSession", env=env).returncode == 0
    assert asked.read_text() == "-- dom0 insula.ShowWindows\n"
    # Shown already: there is nothing to ask for.
    (keys / "qubes-gui-enabled").write_bytes(b"1")
    assert run("qubes.WaitForSession", env=env).returncode == 0
    assert asked.read_text() == "-- dom0 insula.ShowWindows\n"


def test_waitforsession_ends_when_the_session_is_there(tmp_path: Path) -> None:
    (tmp_path / "insula/keys").mkdir(parents=True)
    (tmp_path / "insula/keys/qubes-gui-enabled").write_bytes(b"1")
    gate = tmp_path / "insula/session-gate"
    os.mkfifo(gate)
    writer = os.open(gate, os.O_RDWR)
    env = {**os.environ, "INSULA_RUN": str(tmp_path)}
    with subprocess.Popen([FOLDER / "qubes.WaitForSession"], env=env, stdin=subprocess.DEVNULL) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        gate.unlink()
        os.close(writer)
        assert waiting.wait(120) == 0
    assert run("qubes.WaitForSession", env={"INSULA_RUN": str(tmp_path)}).returncode == 0
