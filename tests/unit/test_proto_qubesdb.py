from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, qubesdb
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qubesdb import AllKeysRead, Decoder, KeyClient, KeyMessage, KeyRemoved, KeyServer, KeyWritten

PATHS = st.text("abcXYZ019/_.-:", max_size=62).map(lambda text: "/" + text)
MESSAGES = st.builds(KeyMessage, st.integers(0, 13), PATHS, st.binary(max_size=300))


def server(keys: dict[str, bytes] | None = None) -> KeyServer:
    return KeyServer({"/name": b"work"} if keys is None else keys, lambda path, value: True)


def answers(end: KeyServer | KeyClient) -> list[KeyMessage]:
    return Decoder().receive(end.take_output())


def test_encode_layout_as_published() -> None:
    message = qubesdb.encode(KeyMessage(qubesdb.WRITE, "/name", b"work"))
    assert message == b"\x01" + b"/name".ljust(64, b"\0") + bytes(3) + struct.pack("<I", 4) + b"work"


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 100))
def test_decode_any_split_returns_same_messages(messages: list[KeyMessage], size: int) -> None:
    data = b"".join(qubesdb.encode(message) for message in messages)
    decoder = Decoder()
    decoded = [m for start in range(0, len(data), size) for m in decoder.receive(data[start : start + size])]
    assert decoded == messages
    assert decoder.is_between_messages


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_receive_mutated_bytes_raises_only_remote_error(messages: list[KeyMessage], data: st.DataObject) -> None:
    """MC-11, MC-12."""
    wire = bytearray(b"".join(qubesdb.encode(message) for message in messages))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    for end in (server(), KeyClient()):
        try:
            end.receive(bytes(wire))
        except RemoteProtocolError:
            continue


@pytest.mark.parametrize("length", [limits.QUBESDB_MAX_VALUE + 1, 0x80000000, 0xFFFFFFFF])
def test_receive_length_over_limit_refused_before_memory_is_used(length: int) -> None:
    """MC-11."""
    decoder = Decoder()
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decoder.receive(struct.pack("<B64s3xI", qubesdb.WRITE, b"/a", length))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16384


def test_receive_path_with_bytes_behind_nul_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        Decoder().receive(struct.pack("<B64s3xI", qubesdb.WRITE, b"/a\0b", 0))


@pytest.mark.parametrize(
    "message", [KeyMessage(0, "/" + "a" * 63), KeyMessage(0, "/ä"), KeyMessage(14), KeyMessage(1, "/a", bytes(3073))]
)
def test_encode_beyond_limits_refused(message: KeyMessage) -> None:
    with pytest.raises(LocalProtocolError):
        qubesdb.encode(message)


def test_client_connecting_reads_every_key_then_follows_changes() -> None:
    host, guest = server({"/name": b"work", "/qubes-service/x": b"1"}), KeyClient()
    host.receive(guest.read_all())
    assert guest.receive(host.take_output()) == [AllKeysRead()]
    assert guest.keys == {"/name": b"work", "/qubes-service/x": b"1"}
    assert guest.receive(host.write("/name", b"play")) == [KeyWritten("/name", b"play")]
    assert host.receive(guest.take_output()) == []
    assert guest.receive(host.remove("/name")) == [KeyRemoved("/name")]
    assert guest.keys == {"/qubes-service/x": b"1"}


def test_server_guest_write_on_its_list_taken() -> None:
    keys: dict[str, bytes] = {}
    host, guest = server(keys), KeyClient()
    assert host.receive(guest.write("/features-request/gui", b"1")) == [KeyWritten("/features-request/gui", b"1")]
    assert keys == {"/features-request/gui": b"1"}
    assert answers(host) == [KeyMessage(qubesdb.RESP_OK, "/features-request/gui")]


@pytest.mark.parametrize(
    "path", ["/name", "/qubes-block-devicesX", "/dns/../name", "/dns//a", "/dns/a b", "/dns/$(id)", ""]
)
def test_server_guest_write_elsewhere_answered_with_error(path: str) -> None:
    """MC-16, MC-18: a qube cannot change what the host says about it."""
    keys = {"/name": b"work"}
    host = server(keys)
    assert host.receive(qubesdb.encode(KeyMessage(qubesdb.WRITE, path, b"dom0"))) == []
    assert [answer.kind for answer in answers(host)] == [qubesdb.RESP_ERROR]
    assert keys == {"/name": b"work"}


def test_server_guest_write_beyond_key_limit_answered_with_error() -> None:
    keys = {f"/dns/{number}": b"" for number in range(limits.QUBESDB_MAX_KEYS)}
    host = server(keys)
    host.receive(qubesdb.encode(KeyMessage(qubesdb.WRITE, "/dns/more", b"")))
    assert [answer.kind for answer in answers(host)] == [qubesdb.RESP_ERROR]
    assert len(keys) == limits.QUBESDB_MAX_KEYS


def test_server_guest_removal_of_folder_removes_what_is_below() -> None:
    keys = {"/dns/1": b"", "/dns/2": b"", "/dnsx": b""}
    host = server(keys)
    assert host.receive(KeyClient().remove("/dns/")) == [KeyRemoved("/dns/1"), KeyRemoved("/dns/2")]
    assert keys == {"/dnsx": b""}


def test_server_read_requests_answered() -> None:
    host = server()
    wire = [qubesdb.encode(KeyMessage(qubesdb.READ, path)) for path in ("/name", "/none")]
    assert host.receive(b"".join(wire)) == []
    assert answers(host) == [
        KeyMessage(qubesdb.RESP_READ, "/name", b"work"),
        KeyMessage(qubesdb.RESP_ERROR_NOENT, "/none"),
    ]


@pytest.mark.parametrize(
    "kind", [qubesdb.WATCH, qubesdb.UNWATCH, qubesdb.LIST, qubesdb.RESP_MULTIREAD, qubesdb.RESP_WATCH]
)
def test_server_message_not_of_this_channel_drops_peer(kind: int) -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        server().receive(qubesdb.encode(KeyMessage(kind, "/name")))


def test_server_answer_to_nothing_drops_peer() -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        server().receive(qubesdb.encode(KeyMessage(qubesdb.RESP_OK, "/name")))


def test_server_endless_multiread_bounded_output() -> None:
    """MC-14: a qube that asks and never reads."""
    keys = {f"/k{number}": bytes(limits.QUBESDB_MAX_VALUE) for number in range(limits.QUBESDB_MAX_KEYS)}
    host = server(keys)
    with pytest.raises(RemoteProtocolError):
        host.receive(qubesdb.encode(KeyMessage(qubesdb.MULTIREAD)) * 10)
    assert len(host.take_output()) <= limits.QUBESDB_MAX_OUTPUT + 4096


def test_client_answer_before_all_keys_drops_peer() -> None:
    with pytest.raises(RemoteProtocolError):
        KeyClient().receive(qubesdb.encode(KeyMessage(qubesdb.WRITE, "/a", b"")))
