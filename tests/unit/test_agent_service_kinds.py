"""Kinds of services and their settings, through a real agent and a real session (reference: qrexec, §5)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc.client import run, run_collect, run_detached
from insula.testing.agent import FakeQube, fake_qube, own_user


@pytest.fixture
async def qube(tmp_path: Path) -> AsyncIterator[FakeQube]:
    async with fake_qube(tmp_path) as made:
        yield made


async def serve(qube: FakeQube, command: str, stdin: bytes = b"", user: str = "DEFAULT") -> tuple[int, bytes, bytes]:
    return await run_collect(qube.rpc_socket, f"QUBESRPC {command}", user=user, stdin=stdin, timeout=120)


class Listener:
    """A service that listens: reads until its input ends (or as much as it wants), answers, closes."""

    def __init__(self, listener: socket.socket, answer: bytes = b"answer", limit: int = 1 << 20) -> None:
        listener.listen(4)
        listener.setblocking(False)
        self._listener = listener
        self._answer = answer
        self._limit = limit
        self.heard: list[bytes] = []
        self._task = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            with connection:
                data = b""
                while len(data) < self._limit and (part := await loop.sock_recv(connection, self._limit - len(data))):
                    data += part
                self.heard.append(data)
                await loop.sock_sendall(connection, self._answer)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()


def unix(path: Path) -> socket.socket:
    """Bind at any path: under a short name first, then moved, since addresses hold 107 bytes."""
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    try:
        listener.bind(f"/proc/self/fd/{folder}/x")
        Path(f"/proc/self/fd/{folder}/x").rename(path)
    finally:
        os.close(folder)
    return listener


# --- sockets -------------------------------------------------------------------------------------------------------


async def test_socket_is_told_who_calls_then_input_and_gives_output(qube: FakeQube) -> None:
    service = Listener(unix(qube.folder / "rpc" / "a.B"))
    assert await serve(qube, "a.B+c work name vault", b"input") == (0, b"answer", b"")
    assert service.heard == [b"a.B+c work name vault\0input"]
    await service.close()


async def test_socket_path_longer_than_an_address(qube: FakeQube) -> None:
    name = "a.B+" + "x" * 200
    service = Listener(unix(qube.folder / "rpc" / name))
    assert await serve(qube, f"{name} work", b"input") == (0, b"answer", b"")
    assert service.heard == [name.encode() + b" work\0input"]
    await service.close()


async def test_socket_without_descriptor(qube: FakeQube) -> None:
    (qube.folder / "rpc-config" / "a.B").write_text("skip-service-descriptor = true\n")
    service = Listener(unix(qube.folder / "rpc" / "a.B"))
    assert await serve(qube, "a.B work", b"input") == (0, b"answer", b"")
    assert service.heard == [b"input"]
    await service.close()


async def test_socket_exit_on_client_eof_ends_before_the_service_answers(qube: FakeQube) -> None:
    (qube.folder / "rpc-config" / "a.B").write_text("exit-on-client-eof = true\n")
    listener = unix(qube.folder / "rpc" / "a.B")
    with listener:
        listener.listen(1)
        assert await serve(qube, "a.B work", b"input") == (0, b"", b"")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b"a.B work\0input"


async def test_socket_exit_on_service_eof_ends_while_input_goes_on(qube: FakeQube) -> None:
    (qube.folder / "rpc-config" / "a.B").write_text("exit-on-service-eof = true\nskip-service-descriptor = true\n")
    listener = unix(qube.folder / "rpc" / "a.B")
    reader, writer = os.pipe()
    with listener, os.fdopen(reader), os.fdopen(writer):
        listener.listen(1)
        listener.setblocking(False)
        with (qube.folder / "out").open("wb") as out:
            call = asyncio.ensure_future(
                run(qube.rpc_socket, "QUBESRPC a.B work", stdin=reader, stdout=out.fileno(), stderr=out.fileno())
            )
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection:
                connection.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(120):
                    assert await call == 0


async def test_socket_that_closes_altogether_ends_the_call_though_input_goes_on(qube: FakeQube) -> None:
    service = Listener(unix(qube.folder / "rpc" / "a.B"), limit=len(b"a.B work\0hello"))
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    with os.fdopen(reader), os.fdopen(writer), (qube.folder / "out").open("w+b") as out:
        async with asyncio.timeout(120):
            code = await run(
                qube.rpc_socket, "QUBESRPC a.B work", stdin=reader, stdout=out.fileno(), stderr=out.fileno()
            )
        assert (code, (qube.folder / "out").read_bytes()) == (0, b"answer")
    await service.close()


async def test_socket_bulk_each_way_arrives_whole(qube: FakeQube) -> None:
    data = os.urandom(5_000_000)
    (qube.folder / "rpc-config" / "a.B").write_text("skip-service-descriptor = true\n")
    service = Listener(unix(qube.folder / "rpc" / "a.B"), answer=data, limit=len(data))
    assert await serve(qube, "a.B work", data) == (0, data, b"")
    assert service.heard == [data]
    await service.close()


async def test_socket_nobody_listens_on_is_125(qube: FakeQube) -> None:
    unix(qube.folder / "rpc" / "a.B").close()
    assert (await serve(qube, "a.B work"))[0] == 125


async def test_socket_detached_is_told_who_calls(qube: FakeQube) -> None:
    service = Listener(unix(qube.folder / "rpc" / "a.B"))
    await run_detached(qube.rpc_socket, "QUBESRPC a.B work")
    async with asyncio.timeout(120):
        while not service.heard:
            await asyncio.sleep(0.01)
    assert service.heard == [b"a.B work\0"]
    await service.close()


# --- TCP -----------------------------------------------------------------------------------------------------------


async def test_tcp_host_and_port_from_link_and_argument(qube: FakeQube) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    (qube.folder / "rpc-config" / "a.B").write_text("skip-service-descriptor = true\n")
    (qube.folder / "rpc" / "a.B").symlink_to("/dev/tcp/127.0.0.1")
    (qube.folder / "rpc" / "a.C").symlink_to("/dev/tcp")
    service = Listener(listener)
    assert await serve(qube, f"a.B+{port} work", b"input") == (0, b"answer", b"")
    assert await serve(qube, f"a.C+127.0.0.1+{port} work", b"input") == (0, b"answer", b"")
    assert service.heard == [b"input", f"a.C+127.0.0.1+{port} work".encode() + b"\0input"]
    await service.close()


@pytest.mark.parametrize("argument", ["", "+localhost+80", "+127.0.0.1", "+127.0.0.1+0", "+127.0.0.1+080"])
async def test_tcp_that_names_no_address_and_port_is_125(qube: FakeQube, argument: str) -> None:
    """Names are not looked up: who calls must not choose what this qube asks its resolver."""
    (qube.folder / "rpc" / "a.B").symlink_to("/dev/tcp")
    assert (await serve(qube, f"a.B{argument} work"))[0] == 125


async def test_tcp_port_nobody_listens_on_is_125(qube: FakeQube) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (qube.folder / "rpc" / "a.B").symlink_to(f"/dev/tcp/127.0.0.1/{port}")
    assert (await serve(qube, "a.B work"))[0] == 125


# --- sessions ------------------------------------------------------------------------------------------------------

SESSION = """#!/bin/sh
read user
echo "$user $QREXEC_REMOTE_DOMAIN" >> {folder}/waited
while [ ! -e {folder}/session ]; do sleep 0.02; done
exit 3
"""


async def test_calls_wait_for_the_session_which_is_waited_for_once(qube: FakeQube) -> None:
    qube.add_service("qubes.WaitForSession", SESSION.format(folder=qube.folder))
    qube.add_service("a.B", "#!/bin/sh\ncat\n", settings="wait-for-session = true\n")
    calls = [asyncio.ensure_future(serve(qube, "a.B work", b"input")) for _ in range(3)]
    async with asyncio.timeout(120):
        while not (qube.folder / "waited").exists():
            await asyncio.sleep(0.01)
    # Others do not wait.
    assert (await serve(qube, "qubes.VMExec+true work"))[0] == 0
    assert not any(call.done() for call in calls)
    (qube.folder / "session").touch()
    assert await asyncio.gather(*calls) == [(0, b"input", b"")] * 3
    assert (qube.folder / "waited").read_text() == f"{own_user()} work\n"


async def test_call_without_gui_does_not_wait(qube: FakeQube) -> None:
    qube.add_service("qubes.WaitForSession", SESSION.format(folder=qube.folder))
    qube.add_service("a.B", "#!/bin/sh\ncat\n", settings="wait-for-session = 1\n")
    answer = await run_collect(qube.rpc_socket, "nogui:QUBESRPC a.B work", stdin=b"input", timeout=120)
    assert answer == (0, b"input", b"")
    assert not (qube.folder / "waited").exists()


async def test_qube_without_sessions_does_not_wait(qube: FakeQube) -> None:
    qube.add_service("a.B", "#!/bin/sh\ncat\n", settings="wait-for-session = 1\n")
    assert await serve(qube, "a.B work", b"input") == (0, b"input", b"")


async def test_caller_that_leaves_while_it_waits_starts_nothing(qube: FakeQube) -> None:
    """MC-22."""
    qube.add_service("qubes.WaitForSession", SESSION.format(folder=qube.folder))
    qube.add_service("a.B", f"#!/bin/sh\ntouch {qube.folder}/started\n", settings="wait-for-session = 1\n")
    call = asyncio.ensure_future(serve(qube, "a.B work"))
    async with asyncio.timeout(120):
        while not (qube.folder / "waited").exists():
            await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert qube.session is not None
    # What the session says about the stream is before what it says about this call.
    (qube.folder / "session").touch()
    async with asyncio.timeout(120):
        while qube.session.calls.running:
            await asyncio.sleep(0.01)
    assert (await serve(qube, "qubes.VMExec+true work"))[0] == 0
    assert not (qube.folder / "started").exists()


# --- processes -----------------------------------------------------------------------------------------------------


async def test_service_may_use_its_input_for_output_after_sigusr1(qube: FakeQube) -> None:
    qube.add_service(
        "a.B",
        '#!/bin/sh\necho first\nkill -USR1 "$QREXEC_AGENT_PID"\necho second >&0\nread x\necho "got $x" >&0\n',
    )
    assert await serve(qube, "a.B work", b"input\n") == (0, b"first\nsecond\ngot input\n", b"")


async def test_sigusr1_of_one_service_changes_no_other(qube: FakeQube) -> None:
    qube.add_service("a.B", '#!/bin/sh\nkill -USR1 "$QREXEC_AGENT_PID"\nread x\necho one >&0\n')
    qube.add_service("a.C", "#!/bin/sh\nread x\necho on output\n")
    results = await asyncio.gather(*[serve(qube, f"a.{name} work", b"\n") for name in "CBCBC"])
    assert [output for _, output, _ in results] == [b"on output\n", b"one\n"] * 2 + [b"on output\n"]


async def test_sigusr1_of_a_stranger_is_ignored(qube: FakeQube) -> None:
    assert qube.agent is not None
    await serve(qube, "qubes.VMExec+true work")
    os.kill(qube.agent.pid, 10)
    assert (await serve(qube, "qubes.VMExec+true work"))[0] == 0


async def test_what_people_type_can_open_dev_stdin(qube: FakeQube) -> None:
    assert await serve(qube, "qubes.VMExec+cat+-2Fdev-2Fstdin work", b"input") == (0, b"input", b"")


async def test_child_that_holds_the_input_sees_its_end_when_the_service_has_ended(qube: FakeQube) -> None:
    qube.add_service("a.B", "#!/bin/sh\nexec 3<&0\n(cat <&3 >/dev/null; echo ended) &\n")
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer), (qube.folder / "out").open("w+b") as out:
        async with asyncio.timeout(120):
            await run(qube.rpc_socket, "QUBESRPC a.B work", stdin=reader, stdout=out.fileno(), stderr=out.fileno())
        assert (qube.folder / "out").read_bytes() == b"ended\n"


async def test_forced_user_is_the_one_that_counts(qube: FakeQube) -> None:
    qube.add_service("a.B", "#!/bin/sh\nid -un\n", settings=f"force-user = '{own_user()}'\n")
    assert await serve(qube, "a.B work", user="somebody-else") == (0, own_user().encode() + b"\n", b"")
    qube.add_service("a.C", "#!/bin/sh\nid -un\n", settings="force-user = 'somebody-else'\n")
    assert (await serve(qube, "a.C work"))[0] == 125
