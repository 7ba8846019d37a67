"""``insula`` for programs: a real session and agent in this machine, an Admin API without machines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import insula
from insula.client.errors import EXCERPT
from insula.daemon.paths import Paths
from insula.model.errors import QubesVMNotFoundError, QubesVMNotRunningError
from insula.model.names import QubeName
from insula.model.properties import view
from insula.model.state import PowerState
from insula.testing.admin_daemon import AdminDaemon, admin_daemon
from insula.testing.local_guest import LocalGuest

TIMEOUT_S = 120.0


class Machine:
    """The fake daemon and one agent that answers for every qube."""

    def __init__(self, daemon: AdminDaemon, guest: LocalGuest, folder: Path) -> None:
        self.daemon = daemon
        self.guest = guest
        self.folder = folder

    def serve(self, name: str) -> None:
        """Commands in ``name`` are run by the agent from now on."""
        (self.folder / name).symlink_to(self.folder / "work")

    @contextlib.asynccontextmanager
    async def disposable(self, **options: float | str | None) -> AsyncIterator[insula.Qube]:
        async with insula.disposable("debian-12", **options) as qube:  # type: ignore[arg-type]
            self.serve(qube.name)
            yield qube

    @property
    def disposables(self) -> list[str]:
        return [qube.name for qube in self.daemon.store.system.qubes.values() if qube.klass == "DispVM"]


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    folder = tmp_path / "host"
    (folder / "work").mkdir(parents=True)
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.make()
    monkeypatch.setenv("INSULA_DATA_DIR", str(paths.data))
    monkeypatch.setenv("INSULA_RUNTIME_DIR", str(paths.runtime))
    guest = LocalGuest(folder / "work" / "rpc.sock", tmp_path / "keys")
    async with admin_daemon(folder) as daemon:
        paths.admin_socket.symlink_to(daemon.socket)
        try:
            await guest.boot()
            yield Machine(daemon, guest, folder)
        finally:
            await guest.end()


@pytest.fixture
async def work(machine: Machine) -> insula.Qube:
    qube = insula.qube("work")
    await qube.start()
    return qube


# commands


async def test_run_gives_exit_code_and_both_outputs(work: insula.Qube) -> None:
    result = await work.run(["sh", "-c", "cat; echo err >&2; exit 7"], input=b"in\xff\n")
    assert result == insula.Result(7, b"in\xff\n", b"err\n")
    assert result.text == "in\\xff"


async def test_arguments_arrive_unchanged(work: insula.Qube) -> None:
    odd = ["-n", "a b", "", "$HOME", "*", "ü", b"\xff", Path("/x"), "'\"\\", "line\nbreak"]
    result = await work.run(["printf", "%s|", *odd], check=True)
    assert result.stdout == b"".join(os.fsencode(word) + b"|" for word in odd)


async def test_check_raises_with_the_result_and_shows_no_control_characters(work: insula.Qube) -> None:
    with pytest.raises(insula.CommandFailed) as raised:
        await work.run(["sh", "-c", "printf 'no\\033[2Jway' >&2; exit 3"], check=True)
    assert raised.value.result.exit_code == 3
    assert str(raised.value) == "exit code 3: 'no\\x1b[2Jway'"


async def test_timeout_ends_the_command(work: insula.Qube, tmp_path: Path) -> None:
    with pytest.raises(insula.CommandTimedOut, match=r"more than 0\.3 s") as raised:
        await work.run(["sleep", "600"], timeout=0.3)
    assert isinstance(raised.value, TimeoutError)


async def test_output_above_the_limit_ends_the_command(work: insula.Qube) -> None:
    with pytest.raises(insula.OutputTooLong, match="more than 1000 bytes"):
        await work.run(["yes"], output_limit=1000)


async def test_cancelled_call_ends_the_program(work: insula.Qube, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    call = asyncio.create_task(work.run(["sh", "-c", f"echo begun > {fifo}; exec 3> {fifo}; exec sleep 600"]))
    async with asyncio.timeout(TIMEOUT_S):
        while not _read(reader):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while _read(reader) is None:  # nothing to read, but somebody who could write
            await asyncio.sleep(0.01)
    os.close(reader)


def _read(fd: int) -> bytes | None:
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return None


@pytest.mark.parametrize(("command", "error"), [([], ValueError), (["x\0"], ValueError), (["x" * 70000], ValueError)])
async def test_command_that_cannot_be_is_refused(work: insula.Qube, command: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        await work.run(command)


async def test_shell_line_instead_of_a_list_is_refused(work: insula.Qube) -> None:
    with pytest.raises(TypeError, match="for a shell line use"):
        await work.run("echo x")


async def test_qube_that_is_off_or_not_there_is_refused_by_name(machine: Machine) -> None:
    with pytest.raises(QubesVMNotRunningError):
        await insula.qube("work").run(["true"])
    with pytest.raises(QubesVMNotFoundError):
        await insula.qube("wrok").run(["true"])


async def test_qube_is_started_stopped_and_killed(machine: Machine) -> None:
    qube = insula.qube("work")
    assert not await qube.is_running()
    await qube.start()
    await qube.start()
    assert await qube.is_running()
    await qube.stop()
    assert not await qube.is_running()
    await qube.start()
    await qube.kill()
    assert machine.daemon.engine.power_state(QubeName("work")) is PowerState.HALTED
    assert not await insula.qube("nosuch").is_running()


async def test_session_that_is_not_there_is_a_failed_call(machine: Machine, work: insula.Qube) -> None:
    await machine.guest.end()
    with pytest.raises(insula.CallFailed):
        await work.run(["true"])


# disposables


async def test_disposable_runs_commands_and_is_gone(machine: Machine) -> None:
    async with machine.disposable() as qube:
        assert machine.disposables == [qube.name]
        system = machine.daemon.store.system
        assert view(system, system.get(qube.name)).vm("netvm") is None
        assert (await qube.run(["echo", "hello"])).text == "hello"
    assert machine.disposables == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError])
async def test_error_in_the_block_removes_it_and_comes_through(machine: Machine, error: type[BaseException]) -> None:
    with pytest.raises(error):
        async with machine.disposable():
            raise error
    assert machine.disposables == []


async def test_cancelled_during_the_start_leaves_nothing(machine: Machine) -> None:
    """MC-69."""
    gate = machine.daemon.engine.hold("start")

    async def use() -> None:
        async with machine.disposable():
            pass

    using = asyncio.create_task(use())
    async with asyncio.timeout(TIMEOUT_S):
        while not machine.disposables:
            await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        gate.set()
        while machine.disposables:
            await asyncio.sleep(0)


async def test_sizes_network_and_limits_are_passed_on(machine: Machine) -> None:
    async with machine.disposable(memory_mib=600, vcpus=1) as qube:
        properties = machine.daemon.store.system.get(qube.name).properties
        assert (properties["memory"], properties["vcpus"], properties["netvm"]) == (600, 1, None)
    await insula.qube("work").start()
    client = machine.daemon.client
    await client.create_qube("AppVM", "net", "red")
    await client.set_property("provides_network", "True", "net")
    async with machine.disposable(network="net") as qube:
        assert machine.daemon.store.system.get(qube.name).properties["netvm"] == "net"


@pytest.mark.parametrize(("limit", "reason"), [("timeout", "lifetime"), ("cpu_time", "cpu-time")])
async def test_limit_ends_it_and_calls_say_why(machine: Machine, limit: str, reason: str) -> None:
    """The fake machine has used one second of CPU time from the start."""
    async with machine.disposable(**{limit: 0.2}) as qube:
        async with asyncio.timeout(TIMEOUT_S):
            while machine.disposables:
                await asyncio.sleep(0.01)
        await machine.guest.end()
        with pytest.raises(insula.QubeEnded) as raised:
            await qube.run(["true"])
        assert raised.value.reason == reason


async def test_killed_program_leaves_no_disposable(machine: Machine) -> None:
    """What kill -9 leaves of a program: its end of the connection is closed, by the kernel."""
    code = (
        "import asyncio, insula\n"
        "async def main():\n"
        "    async with insula.disposable('debian-12') as qube:\n"
        "        print(qube.name, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert [(await process.stdout.readline()).decode().strip()] == machine.disposables
        process.kill()
        await process.wait()
        while machine.disposables:
            await asyncio.sleep(0.01)


# files


async def test_bytes_and_files_go_in_and_out(work: insula.Qube, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    inside = tmp_path / "inside file"
    await work.copy_in(data, str(inside))
    assert inside.read_bytes() == data
    await work.copy_out(str(inside), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    script = tmp_path / "script"
    script.write_bytes(b"#!/bin/sh\necho ran\n")
    script.chmod(0o700)
    await work.copy_in(script, str(inside))
    assert (await work.run([str(inside)], check=True)).text == "ran"
    await work.copy_in(b"", str(inside))
    assert inside.read_bytes() == b""


async def test_folder_goes_in_and_out(work: insula.Qube, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "-x").write_bytes(b"1")
    (source / "link").symlink_to("sub/-x")
    await work.copy_in(source, str(tmp_path / "in" / "side"))
    await work.copy_out(f"{tmp_path}/in/side/", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "-x").read_bytes() == b"1"
    assert (tmp_path / "back" / "link").readlink() == Path("sub/-x")


async def test_target_that_cannot_be_written_is_told_and_leaves_no_part(work: insula.Qube, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    with pytest.raises(insula.CopyFailed, match="could not be written in the qube"):
        await work.copy_in(b"x" * 10**6, str(tmp_path / "nosuch" / "file"))
    with pytest.raises(insula.CopyFailed, match="could not be written"):
        await work.copy_in(b"x", str(tmp_path / "full"))
    assert list((tmp_path / "full").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


async def test_source_that_is_not_there_or_no_file_is_refused(work: insula.Qube, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await work.copy_in(tmp_path / "nosuch", "/x")
    with pytest.raises(insula.CopyFailed, match="neither a file nor a folder"):
        await work.copy_in("/dev/null", "/x")
    with pytest.raises(insula.CopyFailed, match="could not be read in the qube") as raised:
        await work.copy_out(str(tmp_path / "nosuch"), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < EXCERPT + 200
    for impossible in ("", "/", "a/..", "x\0"):
        with pytest.raises(ValueError, match="a"):
            await work.copy_out(impossible, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_copy_out_above_its_limits_is_refused_and_leaves_nothing(work: insula.Qube, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(20):
        (tmp_path / "many" / str(number)).write_bytes(b"x" * 1000)
    with pytest.raises(insula.CopyTooLarge, match="more than 5000 bytes"):
        await work.copy_out(str(tmp_path / "many"), tmp_path / "out", limit=5000)
    with pytest.raises(insula.CopyTooLarge, match="more than 10 files"):
        await work.copy_out(str(tmp_path / "many"), tmp_path / "out", max_entries=10)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".insula", "out"))) == []


async def test_tar_that_was_replaced_by_a_hostile_one_writes_nothing(
    machine: Machine, work: insula.Qube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qube may answer with whatever it likes: here a stream that never ends, and one with an absolute path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "evil.tar").write_bytes(_archive("/" + str(tmp_path / "owned")))
    for script in (f"exec cat {tmp_path}/evil.tar", "exec yes"):
        (tools / "tar").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "tar").chmod(0o755)
        hostile = _Redirected(work, tools)
        with pytest.raises(insula.UnsafeStream):
            await hostile.copy_out("/etc/hostname", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "owned").exists()


class _Redirected(insula.Qube):
    """A qube whose first folder of programs is another one."""

    def __init__(self, qube: insula.Qube, tools: Path) -> None:
        super().__init__(qube.name, qube._connect)
        self._tools = tools

    async def _run_joined(self, command: list[str], stdin: int | None, stdout: int | None, stderr: int | None) -> int:
        return await super()._run_joined([str(self._tools / command[0]), *command[1:]], stdin, stdout, stderr)


def _archive(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


async def test_cancelled_copies_leave_nothing_here(work: insula.Qube, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = threading.active_count()
    with pytest.raises(insula.CommandTimedOut):
        await work.copy_out("/proc/self/task", tmp_path / "out", timeout=0.0)
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(insula.CommandTimedOut):
        await work.copy_in(source, "/dev/full/x/y", timeout=0.0)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".insula", "out"))] == []
    assert threading.active_count() <= before + 2


# without asyncio


async def test_sync_does_the_same(machine: Machine, tmp_path: Path) -> None:
    def use() -> str:
        with insula.sync.disposable("debian-12") as qube:
            assert qube.is_running()
            machine.serve(qube.name)
            qube.copy_in(b"data", str(tmp_path / "x"))
            qube.copy_out(str(tmp_path / "x"), tmp_path / "y")
            with pytest.raises(insula.CommandTimedOut):
                qube.run(["sleep", "600"], timeout=0.2)
            return qube.run(["cat", str(tmp_path / "y")], check=True).text

    assert await asyncio.to_thread(use) == "data"
    assert machine.disposables == []


async def test_sync_error_in_the_block_removes_it(machine: Machine) -> None:
    def use() -> None:
        with insula.sync.disposable("debian-12"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await _in_thread(use)
    assert machine.disposables == []


async def _in_thread(work: object) -> None:
    """As ``asyncio.to_thread``; a KeyboardInterrupt must not reach the loop on its own."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    await asyncio.to_thread(guarded)
    if failures:
        raise failures[0]


async def test_sync_interrupt_ends_the_call_and_the_disposable(machine: Machine) -> None:
    code = (
        "import insula, signal, threading, os\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    with insula.sync.disposable('debian-12') as qube:\n"
        "        print(qube.name, flush=True)\n"
        "        input()\n"
        "        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "        qube.run(['sleep', '600'])\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with asyncio.timeout(TIMEOUT_S):
        machine.serve((await process.stdout.readline()).decode().strip())
        process.stdin.write(b"\n")
        assert await process.stdout.readline() == b"interrupted\n"
        assert machine.disposables == []
        assert await process.wait() == 0


# the package


def test_import_of_insula_loads_nothing_of_the_rest() -> None:
    code = "import sys; before = set(sys.modules); import insula; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] != "importlib"}
    assert loaded <= {"insula", "warnings", "__future__"}


def test_every_name_offered_is_there() -> None:
    assert {name for name in insula.__all__ if getattr(insula, name, None) is None} == set()
    assert set(insula.__all__) <= set(dir(insula))
    with pytest.raises(AttributeError):
        _ = insula.nosuch  # type: ignore[attr-defined]
