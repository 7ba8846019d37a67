"""QubesDB for programs: the published commands, a real agent, a real session."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc.control import KeyRemoved, KeyWritten
from insula.testing.agent import AGENT_FOLDER, FakeQube, fake_qube

WAIT_S = 120.0


@pytest.fixture
async def qube(tmp_path: Path) -> AsyncIterator[FakeQube]:
    async with fake_qube(tmp_path) as made:
        async with asyncio.timeout(WAIT_S):
            while not (tmp_path / "qubesdb.sock").exists():
                await asyncio.sleep(0.01)
        yield made


async def run(qube: FakeQube, command: str, *arguments: str) -> tuple[int, str]:
    """A command of the qube; its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        AGENT_FOLDER / "bin" / f"qubesdb-{command}",
        *arguments,
        env={**os.environ, "INSULA_LIBRARY": str(AGENT_FOLDER.parent), "QUBESDB_SOCKET": f"{qube.folder}/qubesdb.sock"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode is not None
    return process.returncode, out.decode()


async def told(qube: FakeQube, message: KeyWritten | KeyRemoved) -> None:
    """Wait until the daemon was told."""
    async with asyncio.timeout(WAIT_S):
        while message not in qube.messages:
            await asyncio.sleep(0.01)


async def test_read_list_and_multiread_show_what_the_host_told(qube: FakeQube) -> None:
    assert qube.session is not None
    await qube.session.set_key("/vm-config/a", b"1")
    await qube.session.set_key("/vm-config/b/c", b"two words")
    async with asyncio.timeout(WAIT_S):
        while (await run(qube, "read", "/vm-config/b/c"))[0]:
            pass
    assert await run(qube, "read", "/name", "/vm-config/a") == (0, "work\n1\n")
    assert await run(qube, "list", "/vm-config/") == (0, "a\nb/c\n")
    assert await run(qube, "list", "-f", "/vm-config/") == (0, "/vm-config/a\n/vm-config/b/c\n")
    assert await run(qube, "multiread", "/vm-config/") == (0, "/vm-config/a = 1\n/vm-config/b/c = two words\n")
    assert await run(qube, "read", "/no/such") == (1, "")
    assert await run(qube, "read", "-d", "x", "/no/such") == (0, "x\n")


async def test_written_keys_reach_the_host_and_the_folder(qube: FakeQube) -> None:
    assert (await run(qube, "write", "/features-request/os", "Linux", "/features-request/qrexec", "1"))[0] == 0
    await told(qube, KeyWritten("/features-request/os", b"Linux"))
    await told(qube, KeyWritten("/features-request/qrexec", b"1"))
    assert qube.session is not None
    assert qube.session.written == {"/features-request/os": b"Linux", "/features-request/qrexec": b"1"}
    assert await run(qube, "read", "/features-request/os") == (0, "Linux\n")
    assert (qube.folder / "keys" / "features-request%2Fos").read_bytes() == b"Linux"
    assert (await run(qube, "rm", "/features-request/os"))[0] == 0
    await told(qube, KeyRemoved("/features-request/os"))
    assert qube.session.written == {"/features-request/qrexec": b"1"}
    assert await run(qube, "read", "/features-request/os") == (1, "")
    assert not (qube.folder / "keys" / "features-request%2Fos").exists()


@pytest.mark.parametrize("path", ["/name", "/qubes-service/x", "/features-request/../name", "x", "/" + "y" * 70])
async def test_keys_of_the_host_are_not_a_programs_to_write(qube: FakeQube, path: str) -> None:
    assert (await run(qube, "write", path, "x"))[0] == 1
    assert await run(qube, "read", "/name") == (0, "work\n")


async def test_noise_ends_only_the_connection_it_came_on(qube: FakeQube) -> None:
    """MC-11, MC-12."""
    for noise in (b"\xff" * 72, struct.pack("<B64s3xI", 1, b"/x", 1 << 30), struct.pack("<B64s3xI", 7, b"", 0)):
        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(WAIT_S)
            program.connect(f"{qube.folder}/qubesdb.sock")
            program.sendall(noise)
            assert await asyncio.to_thread(program.recv, 1) == b""
    assert await run(qube, "read", "/name") == (0, "work\n")


async def test_many_programs_at_once_are_answered_or_closed_at_once(qube: FakeQube) -> None:
    """MC-107."""
    idle = []
    try:
        for _ in range(40):
            program = socket.socket(socket.AF_UNIX)
            idle.append(program)
            # Without a limit, so that it waits for a place in the queue.
            await asyncio.to_thread(program.connect, f"{qube.folder}/qubesdb.sock")
        idle[-1].settimeout(WAIT_S)
        assert await asyncio.to_thread(idle[-1].recv, 1) == b""
    finally:
        for program in idle:
            program.close()
    async with asyncio.timeout(WAIT_S):
        while (await run(qube, "read", "/name"))[0]:
            pass


@pytest.mark.parametrize("arguments", [["read"], ["write", "/a"], ["rm"], ["list"]])
async def test_commands_say_how_they_are_used(qube: FakeQube, arguments: list[str]) -> None:
    assert (await run(qube, *arguments))[0] == 2


async def test_agent_that_ends_takes_its_socket_along(qube: FakeQube) -> None:
    await qube.kill_agent(15)
    assert not (qube.folder / "qubesdb.sock").exists()
