"""Commands through a real agent and a real session in its sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc import client, launcher, lending
from insula.rpc.client import QubeBusy, run, run_collect, run_detached
from insula.rpc.control import AgentLost, CallsChanged, KeyWritten
from insula.testing.agent import FakeQube, fake_qube, own_user
from insula_proto import limits, vmexec

BIG = random.Random(1).randbytes(10_000_000)


@pytest.fixture
async def qube(tmp_path: Path) -> AsyncIterator[FakeQube]:
    async with fake_qube(tmp_path) as made:
        yield made


async def sh(qube: FakeQube, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    return await run_collect(qube.rpc_socket, command, stdin=stdin, timeout=120)


async def calls_are_over(qube: FakeQube) -> None:
    """Wait for the session to have counted the last call's end."""
    assert qube.session is not None
    async with asyncio.timeout(120):
        while qube.session.calls.running or not qube.session.calls.started:
            await asyncio.sleep(0.005)


async def is_gone(pid: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.01)


async def test_command_echoes_stdin_to_both_outputs(qube: FakeQube) -> None:
    assert await sh(qube, "tee /dev/stderr", b"hello") == (0, b"hello", b"hello")


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_command_exit_code_is_passed_on(qube: FakeQube, code: int) -> None:
    assert (await sh(qube, f"exit {code}"))[0] == code


async def test_command_killed_by_signal_gives_128_and_number(qube: FakeQube) -> None:
    assert (await sh(qube, "kill -KILL $$"))[0] == 128 + signal.SIGKILL


async def test_command_not_found_is_127(qube: FakeQube) -> None:
    assert (await sh(qube, "no.such.command.here"))[0] == 127


async def test_user_that_cannot_be_had_is_125(qube: FakeQube) -> None:
    code, _, _ = await run_collect(qube.rpc_socket, "true", user="no-such-user", timeout=120)
    assert code == 125


async def test_default_user_is_the_one_of_the_keys(qube: FakeQube) -> None:
    assert (await sh(qube, "id -un"))[1].decode().strip() == own_user()


async def test_stdin_end_reaches_command_while_output_goes_on(qube: FakeQube) -> None:
    """Half-close: the command answers only after its input has ended."""
    assert (await sh(qube, "x=$(cat); echo got $x", b"all"))[1] == b"got all\n"


async def test_command_that_closes_stdin_early_still_succeeds(qube: FakeQube) -> None:
    """Input nobody reads is dropped, not an error."""
    assert await sh(qube, "exec <&-; echo done", BIG) == (0, b"done\n", b"")


async def test_command_output_closed_before_its_end_waits_for_exit_code(qube: FakeQube) -> None:
    assert (await sh(qube, "exec >&- 2>&-; cat; exit 9", b"x"))[0] == 9


async def test_background_child_that_holds_stdout_delays_the_end(qube: FakeQube) -> None:
    code, output, _ = await sh(qube, "(read x; echo late) <<E &\nline\nE\nexit 4")
    assert (code, output) == (4, b"late\n")


async def test_ten_megabytes_each_way_arrive_whole(qube: FakeQube) -> None:
    code, output, _ = await sh(qube, "sha256sum -; ", BIG)
    assert (code, output.split()[0].decode()) == (0, hashlib.sha256(BIG).hexdigest())
    code, output, _ = await sh(qube, "cat", BIG)
    assert (code, hashlib.sha256(output).digest()) == (0, hashlib.sha256(BIG).digest())


async def test_large_output_is_lent_to_its_caller_and_arrives_whole(
    qube: FakeQube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By file, by pipe and collected; what is said in between on stderr comes whole too."""
    taken = []
    take = lending.Loans.take
    monkeypatch.setattr(lending.Loans, "take", lambda loans: taken.append(1) or take(loans))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(BIG * 4)
    command = f"cat {source}; echo middle >&2; cat {source}"
    with target.open("wb") as file:
        assert await run(qube.rpc_socket, command, stdout=file.fileno(), timeout=60) == 0
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(BIG * 8).digest()
    assert taken
    # From its beginning now.
    taken.clear()
    code, output, errors = await sh(qube, f"cat {source}; echo middle >&2; cat {source} | head -c 1000000")
    assert (code, errors) == (0, b"middle\n")
    assert hashlib.sha256(output).digest() == hashlib.sha256(BIG * 4 + BIG[:1000000]).digest()
    assert len(taken) > 20
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        reading = asyncio.create_task(asyncio.to_thread(pipe.read))
        assert await run(qube.rpc_socket, f"cat {source}", stdout=writer, timeout=60) == 0
        os.close(writer)
        assert hashlib.sha256(await reading).digest() == hashlib.sha256(BIG * 4).digest()


async def test_caller_that_goes_while_memory_is_lent_to_it_harms_no_other(qube: FakeQube) -> None:
    """MC-14, MC-22: three that do not read, and then all is as before."""
    assert (await run(qube.rpc_socket, "head -c 10000000 /dev/zero", timeout=60)) == 0
    reader, writer = os.pipe()
    stuck = [asyncio.create_task(run(qube.rpc_socket, "cat /dev/zero", stdout=writer, timeout=120)) for _ in range(3)]
    for _ in range(3):
        code, output, _ = await sh(qube, "head -c 10000000 /dev/zero")
        assert (code, len(output)) == (0, 10000000)
    for call in stuck:
        assert not call.done()
        call.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    os.close(writer)
    os.close(reader)
    await calls_are_over(qube)
    code, output, _ = await sh(qube, "cat", BIG)
    assert (code, hashlib.sha256(output).digest()) == (0, hashlib.sha256(BIG).digest())


async def test_stdout_and_stderr_flood_at_once_both_arrive_whole(qube: FakeQube) -> None:
    code, output, errors = await sh(qube, "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait")
    assert (code, len(output), len(errors)) == (0, 3000000, 3000000)


async def test_error_output_has_its_turn_beside_an_endless_stream(qube: FakeQube) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    command = "while sleep 0.05; do echo word >&2; done & head -c 4000000 /dev/zero; cat /dev/zero 2>/dev/null"
    call = asyncio.create_task(run(qube.rpc_socket, command, stdout=null, stderr=writer, timeout=120))
    with os.fdopen(reader, "rb") as errors:
        async with asyncio.timeout(120):
            for _ in range(20):
                assert await asyncio.to_thread(errors.readline) == b"word\n"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    os.close(writer)
    os.close(null)


async def test_command_on_descriptors_reads_and_writes_them(qube: FakeQube, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(BIG[:200000])
    with source.open("rb") as stdin, target.open("wb") as stdout:
        code = await run(qube.rpc_socket, "cat", stdin=stdin.fileno(), stdout=stdout.fileno(), timeout=120)
    assert (code, target.read_bytes()) == (0, BIG[:200000])


async def test_command_on_pipes_same_descriptor_for_both_outputs(qube: FakeQube) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    code = await run(qube.rpc_socket, "echo a; echo b >&2", stdin=null, stdout=writer, stderr=writer, timeout=120)
    os.close(null)
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        assert (code, sorted(output.read().split())) == (0, [b"a", b"b"])


async def test_slow_reader_of_pipe_gets_everything_and_descriptor_stays_blocking(qube: FakeQube) -> None:
    """MC-14: nothing is held but what fits the buffers on the way."""
    reader, writer = os.pipe()
    call = asyncio.create_task(run(qube.rpc_socket, "head -c 5000000 /dev/zero", stdout=writer, timeout=120))
    received = 0
    loop = asyncio.get_running_loop()
    while received < 5000000:
        # A thread, because the end that is tested shares this loop.
        received += len(await loop.run_in_executor(None, os.read, reader, 3000))
    assert await call == 0
    assert os.get_blocking(writer)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_reader_that_went_away_ends_the_command(qube: FakeQube) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = await run(qube.rpc_socket, "echo x; cat; exit 3", stdout=writer, timeout=120)
    os.close(writer)
    assert code == 3


async def test_process_that_does_not_read_stops_only_its_own_stream(qube: FakeQube) -> None:
    """MC-14: 10 MB for a command that reads nothing; others are served meanwhile."""
    stuck = asyncio.create_task(sh(qube, "read line; echo $line; exec sleep 1000", b"first\n" + BIG))
    for _ in range(5):
        assert (await sh(qube, "cat", b"x" * 100000))[0] == 0
    assert not stuck.done()
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    await calls_are_over(qube)


async def test_calls_over_the_quota_are_refused_as_busy_the_others_succeed(qube: FakeQube) -> None:
    """MC-15: 300 at once."""
    gate = qube.folder / "gate"
    os.mkfifo(gate)
    command = f"read line < {gate}; echo ok"
    calls = [asyncio.create_task(sh(qube, command)) for _ in range(300)]
    async with asyncio.timeout(120):
        while sum(call.done() for call in calls) < 300 - limits.MAX_CALLS:
            await asyncio.sleep(0.01)
    with pytest.raises(QubeBusy):
        await sh(qube, "true")
    # Open for both, so that it neither blocks nor ends for those who come late; a line for each.
    opened = os.open(gate, os.O_RDWR)
    os.write(opened, b"\n" * limits.MAX_CALLS)
    results = await asyncio.gather(*calls, return_exceptions=True)
    os.close(opened)
    outcomes = Counter(type(result) if isinstance(result, BaseException) else result for result in results)
    assert outcomes == {(0, b"ok\n", b""): limits.MAX_CALLS, QubeBusy: 300 - limits.MAX_CALLS}
    await calls_are_over(qube)
    assert await sh(qube, "echo again") == (0, b"again\n", b"")
    assert qube.session is not None
    async with asyncio.timeout(120):
        # Told some times a second only.
        while qube.session.calls != CallsChanged(0, limits.MAX_CALLS + 1, 300 - limits.MAX_CALLS + 1):
            await asyncio.sleep(0.01)


async def test_cancelled_call_ends_its_process_and_frees_its_port(qube: FakeQube) -> None:
    """MC-22: no orphan process stays, not even one that ignores SIGHUP."""
    pids = qube.folder / "pids"
    call = asyncio.create_task(sh(qube, f"trap '' HUP; sleep 1000 & echo $$ $! > {pids}; wait; sleep 1000"))
    async with asyncio.timeout(120):
        while not pids.exists() or len(pids.read_text().split()) < 2:
            await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for pid in pids.read_text().split():
        await is_gone(int(pid))
    await calls_are_over(qube)


async def test_timeout_ends_the_command(qube: FakeQube) -> None:
    """MC-22: a handler that hangs."""
    limit_s, pid = 0.3, qube.folder / "pid"
    # Until it is one that had begun, on a machine however busy.
    while not pid.exists() or not pid.read_text():
        with pytest.raises(TimeoutError):
            await run_collect(qube.rpc_socket, f"echo $$ > {pid}; exec sleep 1000", timeout=limit_s)
        limit_s *= 2
    await is_gone(int(pid.read_text()))
    await calls_are_over(qube)


async def test_output_over_the_limit_ends_the_command(qube: FakeQube) -> None:
    with pytest.raises(client.OutputTooLong):
        await run_collect(qube.rpc_socket, "cat /dev/zero", limit=100000, timeout=120)
    await calls_are_over(qube)


async def test_detached_command_runs_on_after_the_call(qube: FakeQube) -> None:
    done = qube.folder / "done"
    await run_detached(qube.rpc_socket, f"sleep 0.2; echo yes > {done}", user="DEFAULT", timeout=120)
    async with asyncio.timeout(120):
        while not done.exists() or not done.read_text():
            await asyncio.sleep(0.01)
    await calls_are_over(qube)


async def test_detached_command_that_cannot_start_raises(qube: FakeQube) -> None:
    with pytest.raises(client.CallRefused, match="127"):
        await run_detached(qube.rpc_socket, "QUBESRPC no.Such dom0", user="DEFAULT", timeout=120)


async def test_service_gets_argument_and_environment_unchanged(qube: FakeQube) -> None:
    """MC-17, MC-18: an argument like an option is data; the source is what the host says."""
    qube.add_service(
        "my.Service", '#!/bin/sh\nprintf "%s|" "$#" "$1" "$QREXEC_REMOTE_DOMAIN" "$QREXEC_SERVICE_FULL_NAME"\n'
    )
    code, output, _ = await sh(qube, "QUBESRPC my.Service+--help dom0")
    assert (code, output) == (0, b"1|--help|dom0|my.Service+--help|")


async def test_service_absent_is_127_broken_is_125(qube: FakeQube) -> None:
    qube.add_service("not.Executable", "x", mode=0o644)
    qube.add_service("bad.Settings", "#!/bin/sh\n", settings="force-user=root\n")
    assert (await sh(qube, "QUBESRPC no.Such dom0"))[0] == 127
    assert (await sh(qube, "QUBESRPC not.Executable dom0"))[0] == 125
    assert (await sh(qube, "QUBESRPC bad.Settings dom0"))[0] == 125
    assert (await sh(qube, "QUBESRPC a/../b dom0"))[0] == 125


async def test_vmexec_runs_the_encoded_command(qube: FakeQube) -> None:
    argument = vmexec.encode([b"printf", b"%s,", b"-x", b"$HOME", "ä b".encode()]).decode()
    assert (await sh(qube, f"QUBESRPC qubes.VMExec+{argument} dom0"))[:2] == (0, "-x,$HOME,ä b,".encode())


async def test_keys_are_shown_in_the_qube_and_changes_follow(qube: FakeQube) -> None:
    # Whoever looks from within sees them; from here there is a moment between the agent's answer and its files.
    assert (await sh(qube, f"cat {qube.folder}/keys/name"))[1] == b"work"
    assert qube.session is not None
    await qube.session.set_key("/name", b"play")
    await qube.session.set_key("/new", b"1")
    await qube.session.remove_key("/new")
    async with asyncio.timeout(120):
        while (qube.folder / "keys" / "name").read_text() != "play" or (qube.folder / "keys" / "new").exists():
            await asyncio.sleep(0.01)


async def test_agent_restarted_is_greeted_again_and_running_calls_end(qube: FakeQube) -> None:
    stuck = asyncio.create_task(sh(qube, "echo $$; sleep 1000"))
    assert qube.session is not None
    async with asyncio.timeout(120):
        while not qube.session.calls.running:
            await asyncio.sleep(0.005)
    await qube.kill_agent(signal.SIGTERM)
    await qube.start_agent()
    assert (await asyncio.wait_for(stuck, 120))[0] == 255
    async with asyncio.timeout(120):
        while not any(isinstance(message, AgentLost) for message in qube.messages):
            await asyncio.sleep(0.005)
    await qube.ready()
    assert await sh(qube, "echo again") == (0, b"again\n", b"")
    assert not [message for message in qube.messages if isinstance(message, KeyWritten)]


async def test_no_session_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(client.SessionUnavailable):
        await run_collect(tmp_path / "rpc.sock", "true")


@pytest.mark.parametrize("user", ["", "a:b"])
async def test_user_that_would_change_the_command_line_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(ValueError, match="user"):
        await run_collect(tmp_path / "rpc.sock", "true", user=user)


async def test_agent_survives_input_for_a_call_that_could_not_start(qube: FakeQube) -> None:
    """Input that arrives together with the failure is granted back once, not twice."""
    for _ in range(3):
        code, _out, _err = await sh(qube, "QUBESRPC test.NoSuchService+ dom0", b"x" * 1000)
        assert code == 127
    assert (await sh(qube, "echo alive"))[1] == b"alive\n"


async def test_host_tells_a_service_and_its_answer_is_thrown_away(qube: FakeQube) -> None:
    script = f"#!/bin/sh\ncat >'{qube.folder}/told'\nhead -c 3000000 /dev/zero\necho end >>'{qube.folder}/told'\n"
    qube.add_service("test.Told", script)
    assert qube.session is not None
    await qube.session.tell_service("test.Told", b"words\n", own_user())
    assert (qube.folder / "told").read_text() == "words\nend\n"


async def test_service_that_never_ends_is_not_waited_for(qube: FakeQube, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-22."""
    monkeypatch.setattr(launcher, "TELL_TIMEOUT", 0.5)
    qube.add_service("test.Slow", f"#!/bin/sh\necho $$ >'{qube.folder}/pid'\nexec sleep 1000\n")
    assert qube.session is not None
    with pytest.raises(TimeoutError):
        await qube.session.tell_service("test.Slow", b"", own_user())


async def test_qube_without_an_agent_cannot_be_told(tmp_path: Path) -> None:
    alone = FakeQube(tmp_path)
    try:
        session = await alone.start_session()
        with pytest.raises(ConnectionError):
            await session.tell_service("test.Brief", b"", own_user())
    finally:
        await alone.close()
