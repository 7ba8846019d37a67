"""The client against servers that misbehave; against ours it is tested with the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable, MalformedAnswer, exception_from
from insula.model import errors
from insula_proto.admin import Failure


@asynccontextmanager
async def answering(path: Path, answer: bytes) -> AsyncIterator[AdminClient]:
    """A server that reads the request and answers with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield AdminClient(path)


async def test_missing_socket_is_an_unavailable_daemon(tmp_path: Path) -> None:
    client = AdminClient(tmp_path / "none")
    with pytest.raises(DaemonUnavailable, match="No such file"):
        await client.list_qubes()
    with pytest.raises(DaemonUnavailable):
        await anext(client.events())


async def test_dead_socket_is_an_unavailable_daemon(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", b"") as client:
        pass
    with pytest.raises(DaemonUnavailable, match="refused"):
        await client.list_qubes()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", AccessRefused),
        (b"HTTP/1.1 400\r\n", MalformedAnswer),
        (b"0", MalformedAnswer),
        (b"1\0\0connection-established\0\0", MalformedAnswer),
        (b"2\0QubesVMNotFoundError\0\0cut", MalformedAnswer),
        (b"2\0QubesVMNotFoundError\0\0No such qube\0", errors.QubesVMNotFoundError),
        (b"2\0SomethingNew\0\0hm\0", errors.QubesException),
    ],
)
async def test_answer_becomes_the_right_error(tmp_path: Path, answer: bytes, error: type[Exception]) -> None:
    async with answering(tmp_path / "s", answer) as client:
        with pytest.raises(error):
            await client.call("admin.vm.List")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", AccessRefused),
        (b"0\0", MalformedAnswer),
        (b"1\0\0connection-established\0\0\x001", MalformedAnswer),
        (b"2\0ProtocolError\0\0no\0", errors.ProtocolError),
    ],
)
async def test_stream_that_is_none_becomes_the_right_error(
    tmp_path: Path, answer: bytes, error: type[Exception]
) -> None:
    async with answering(tmp_path / "s", answer) as client:
        with pytest.raises(error):
            async for _ in client.events():
                pass


async def test_stream_ends_with_the_connection(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", b"1\0\0connection-established\0\x001\0work\0domain-start\0\0") as client:
        assert [event.name async for event in client.events()] == ["connection-established", "domain-start"]
        assert (await client.wait_for(["domain-start"])).subject == "work"
        with pytest.raises(AccessRefused):
            await client.wait_for(["domain-shutdown"])


@pytest.mark.parametrize(
    ("method", "dest", "arg"), [("admin vm", "dom0", ""), ("m", "a b", ""), ("m", "x", "é"), ("m", "x", "a\0b")]
)
async def test_call_that_cannot_be_sent_is_refused_here(tmp_path: Path, method: str, dest: str, arg: str) -> None:
    with pytest.raises(errors.ProtocolError, match="cannot be sent"):
        await AdminClient(tmp_path / "none").call(method, dest, arg)


async def test_payload_that_is_too_long_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(errors.ProtocolError, match="65536"):
        await AdminClient(tmp_path / "none").call("m", payload=bytes(65536))


@pytest.mark.parametrize("name", ["InsulaError", "annotations", "__builtins__", "QubesException"])
def test_name_that_is_no_published_error_gives_the_general_one(name: str) -> None:
    error = exception_from(Failure(name, "100%% of %s", ("it",)))
    assert type(error) is errors.QubesException
    assert str(error) == "100% of it"


@pytest.mark.parametrize(
    ("name", "label", "pool", "error"),
    [
        ("a b", "red", None, errors.QubesValueError),
        ("a label=black", "red", None, errors.QubesValueError),
        ("ü", "red", None, errors.QubesValueError),
        ("a", "red pool=other", None, errors.ProtocolError),
        ("a", "red", "p label=black", errors.ProtocolError),
    ],
)
async def test_words_that_would_be_taken_for_others_are_refused_here(
    tmp_path: Path, name: str, label: str, pool: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await AdminClient(tmp_path / "none").create_qube("AppVM", name, label, pool=pool)


async def test_pool_option_with_a_line_break_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(errors.ProtocolError, match="dir_path"):
        await AdminClient(tmp_path / "none").add_pool("p", "qcow2", {"dir_path": "/a\nreserve_mib=0"})


async def test_bytes_that_are_no_text_are_left_to_the_server_to_refuse(tmp_path: Path) -> None:
    refused = b"2\0ProtocolError\0\0printable ASCII\0"
    async with answering(tmp_path / "s", refused) as client:
        with pytest.raises(errors.ProtocolError, match="printable"):
            await client.set_feature("work", "a", b"\xff".decode("utf-8", "surrogateescape"))
