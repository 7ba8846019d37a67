"""What surrounds a running session process, as the host's kernel shows it: the claims of docs/threat-model.md."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from insula.preload.forks import PreloadedParent
from insula.rpc import control
from insula.rpc.launcher import SessionLauncher
from insula.rpc.spawn import (
    SESSION_ADDRESS_SPACE,
    SESSION_FILES,
    SESSION_PROGRAM,
    SESSION_UID_BASE,
    SessionProcess,
    session_uid,
)
from insula.testing import sandbox_probe
from insula.testing.agent import fake_qube
from insula.testing.sandbox_probe import Report
from insula_proto.qrexec_channel import CallerEnd

PATIENCE = 120.0
QID = 7
"""Of :class:`FakeQube`."""


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Path]:
    """/proc folder of a session process whose agent is ready."""
    async with fake_qube(tmp_path) as qube:
        assert qube.session is not None
        yield Path("/proc", str(qube.session.pid))


def status(session: Path) -> dict[str, str]:
    lines = (session / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mounts(session: Path) -> dict[str, set[str]]:
    """Mount point → options."""
    lines = [line.split() for line in (session / "mountinfo").read_text().splitlines()]
    return {fields[4]: set(fields[5].split(",")) for fields in lines}


@pytest.mark.parametrize("kind", ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup"])
def test_session_has_its_own_namespace(session: Path, kind: str) -> None:
    assert (session / "ns" / kind).readlink() != Path("/proc/self/ns", kind).readlink()


def test_session_sees_no_process_but_itself(session: Path) -> None:
    assert status(session)["NSpid"].split()[1:] == ["1"]
    assert not (session / "root/proc").exists()


def test_session_has_no_network_interface_but_loopback(session: Path) -> None:
    lines = (session / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_session_has_an_empty_root_that_nobody_can_write_to(session: Path) -> None:
    assert list((session / "root").iterdir()) == []
    assert {point: options >= {"ro", "nosuid", "nodev", "noexec"} for point, options in mounts(session).items()} == {
        "/": True
    }
    assert (session / "cwd").readlink() == Path("/")


def test_session_runs_as_a_host_user_of_its_own_not_root(session: Path) -> None:
    expected = SESSION_UID_BASE + QID if os.geteuid() == 0 else os.geteuid()
    assert status(session)["Uid"].split() == [str(expected)] * 4
    if os.geteuid() == 0:
        assert status(session)["Gid"].split() == [str(expected)] * 4


def test_session_has_no_capability_and_cannot_gain_one(session: Path) -> None:
    fields = status(session)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_session_is_in_no_group_of_another_user(session: Path) -> None:
    if os.geteuid() == 0:
        assert status(session)["Groups"] == ""
    else:
        # Nobody but root may leave groups; there is no file that being in them could open.
        assert list((session / "root").iterdir()) == []


def test_session_holds_three_sockets_of_ours_and_no_file(session: Path) -> None:
    links = {int(path.name): str(path.readlink()) for path in (session / "fd").iterdir()}
    # Its last words go to one pipe; channel, listener, daemon; the event loop has a pair of its own to wake itself.
    assert len({links.pop(number) for number in range(3)}) == 1
    assert sorted(link.split(":")[0] for link in links.values()) == ["anon_inode", *["socket"] * 5]


def test_session_is_under_a_seccomp_filter(session: Path) -> None:
    assert status(session)["Seccomp"] == "2"
    assert status(session)["Threads"] == "1"


def test_session_is_bounded(session: Path) -> None:
    lines = (session / "limits").read_text().splitlines()[1:]
    limits = {line[:25].strip(): line[25:].split()[:2] for line in lines}
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert int(limits["Max core file size"][1]) <= 1
    assert limits["Max address space"] == [str(SESSION_ADDRESS_SPACE)] * 2
    assert int(limits["Max open files"][1]) <= SESSION_FILES


def test_session_shows_its_qube_and_nothing_of_how_it_was_started(session: Path) -> None:
    assert (session / "cmdline").read_bytes() == b"insula-session work\0"
    assert (session / "comm").read_text() == "insula-session\n"
    assert b"=" not in (session / "environ").read_bytes()


# What somebody could do who runs code in it


@pytest.fixture
async def parent() -> AsyncIterator[PreloadedParent]:
    async with PreloadedParent([sandbox_probe.PROGRAM, SESSION_PROGRAM]) as made:
        yield made


@pytest.fixture
async def report(parent: PreloadedParent) -> AsyncIterator[Report]:
    """Of a probe in the place of a session. Descriptors that others might inherit are open meanwhile."""
    with Path("/etc").joinpath("passwd").open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        process, connection = await sandbox_probe.fork_probe(parent, session_uid(QID), stderr=2)
        with connection:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PATIENCE):
                data = await loop.sock_recv(connection, sandbox_probe.MAX_REPORT)
            yield msgspec.json.decode(data, type=Report)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


def refused(report: Report, kind: str) -> bool:
    outcomes = report.outcomes[kind]
    assert outcomes.keys() == sandbox_probe.ATTEMPTS[kind].keys()
    return set(outcomes.values()) == {"EPERM"}


def test_program_cannot_open_or_look_at_any_file(report: Report) -> None:
    assert report.outcomes["file"].pop("import what is not there") == "ModuleNotFoundError"
    assert set(report.outcomes["file"].values()) == {"EPERM"}
    assert report.path == []


def test_program_can_start_no_program_or_process(report: Report) -> None:
    assert report.outcomes["process"].pop("start a thread") == "RuntimeError"
    assert set(report.outcomes["process"].values()) == {"EPERM"}


def test_program_can_do_nothing_to_another_process(report: Report) -> None:
    assert refused(report, "other process")


@pytest.mark.parametrize("kind", ["network", "kernel"])
def test_program_gets_nothing_of(report: Report, kind: str) -> None:
    assert refused(report, kind)


def test_program_can_bring_no_code_along(report: Report) -> None:
    assert refused(report, "code")


def test_program_can_use_what_a_session_needs_and_no_more_memory(report: Report) -> None:
    assert set(report.outcomes["own"].values()) == {sandbox_probe.ALLOWED}
    assert report.outcomes["memory"] == {"more than the bound": "MemoryError"}


def test_program_has_its_descriptors_and_nothing_else_of_its_parents(report: Report) -> None:
    assert report.descriptors == [0, 1, 2, 3]
    assert report.environment == {}
    assert report.argv == [sandbox_probe.PROGRAM]
    assert report.pid == 1
    expected = session_uid(QID) or os.geteuid()
    assert report.uid[:2] == [expected, expected]


def memory_holds(pid: int, marker: bytes) -> bool:
    """Whether a process has these bytes anywhere in memory it can read."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, flags, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if flags.startswith("r") and "[v" not in line:
                memory.seek(start)
                if marker in memory.read(end - start):
                    return True
    return False


async def test_memory_of_daemon_and_of_other_sessions_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_daemon, of_session, name = (secrets.token_hex(16) for _ in range(3))
    monkeypatch.setenv("INSULA_TEST_SECRET", of_daemon)
    async with SessionLauncher() as launch:
        guests, sessions = [], []
        for number, (qube, keys) in enumerate([(name, {"/secret": of_session}), ("other", {"/name": "other"})]):
            channel, guest = socket.socketpair()
            guest.setblocking(False)
            guests.append(guest)
            sessions.append(
                await launch(name=qube, qid=number + 1, channel=channel, rpc_socket=tmp_path / qube, keys=keys)
            )
            # It greets the guest once it knows everything.
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(guest, 1), PATIENCE)
        first, other = (session.pid for session in sessions)
        assert memory_holds(os.getpid(), of_daemon.encode())
        assert memory_holds(first, of_session.encode())
        assert memory_holds(first, name.encode())
        assert memory_holds(other, b"other")
        for secret in (of_daemon, of_session, name):
            assert not memory_holds(other, secret.encode())
        assert not memory_holds(first, of_daemon.encode())
        for guest in guests:
            guest.close()


async def test_session_holds_one_socket_more_for_a_call_and_takes_no_descriptor_that_comes_through_it(
    tmp_path: Path,
) -> None:
    """What the session of another qube, taken over, could pass on."""
    async with fake_qube(tmp_path) as qube:
        assert qube.session is not None
        session = Path("/proc", str(qube.session.pid))
        before = kinds_of_descriptors(session)
        for number in range(1, 4):
            ours, theirs = socket.socketpair()
            file = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)
            with ours:
                ours.setblocking(False)
                end = qube.session.serve(number, 9, "", b"QUBESRPC qubes.VMShell+ other", theirs)
                assert await asyncio.wait_for(end.accepted, PATIENCE)
                socket.send_fds(ours, [CallerEnd().hello()], [file])
                os.close(file)
                # The agent's HELLO: what we sent has been read, with what came beside it.
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ours, 100), PATIENCE)
                assert kinds_of_descriptors(session) == sorted([*before, "socket"])
            await asyncio.wait_for(end.ended, PATIENCE)
        assert kinds_of_descriptors(session) == before


def kinds_of_descriptors(session: Path) -> list[str]:
    return sorted(str(path.readlink()).split(":")[0] for path in (session / "fd").iterdir())


async def test_descriptor_that_a_session_sends_does_not_reach_the_daemon() -> None:
    """It reads messages of sessions without what comes beside them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)
    with ours, theirs:
        ours.setblocking(False)
        session = SessionProcess(None, ours, None)  # type: ignore[arg-type] # only its connection is used
        before = len(list(Path("/proc/self/fd").iterdir()))
        socket.send_fds(theirs, [control.encode(control.RequestCancelled(1))], [file])
        os.close(file)
        assert await session.receive() == control.RequestCancelled(1)
        assert len(list(Path("/proc/self/fd").iterdir())) == before - 1
