"""Codec of the Admin API: exact bytes of the published protocol and what is refused."""

from __future__ import annotations

import pytest

from insula_proto import admin
from insula_proto.admin import (
    EventRecord,
    Failure,
    Refused,
    Request,
    RequestDecoder,
    RequestHead,
    ResponseDecoder,
    Success,
)
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

LIST = RequestHead("admin.vm.List", "", "dom0", "dom0")


def decode(data: bytes) -> Request:
    decoder = RequestDecoder()
    decoder.receive(data)
    return decoder.finish()


def test_request_encodes_to_published_bytes() -> None:
    request = Request(RequestHead("admin.vm.property.Set", "label", "dom0", "work"), b"red")
    assert admin.encode_request(request) == b"admin.vm.property.Set+label dom0 name work\0red"


def test_request_without_plus_has_empty_argument() -> None:
    assert decode(b"admin.vm.List dom0 name dom0\0") == Request(LIST)


def test_request_with_empty_argument_decodes() -> None:
    assert decode(b"admin.vm.List+ dom0 name dom0\0") == Request(LIST)


def test_argument_keeps_further_plus_signs() -> None:
    assert decode(b"m+a+b+ dom0 name x\0").head.arg == "a+b+"


def test_keyword_adminvm_is_dom0() -> None:
    assert decode(b"admin.vm.List work keyword adminvm\0").head == RequestHead("admin.vm.List", "", "work", "dom0")


def test_payload_may_hold_any_bytes() -> None:
    payload = bytes(range(256))
    assert decode(b"m+ dom0 name x\0" + payload).payload == payload


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"admin.vm.List",
        b"admin.vm.List dom0 name",
        b"admin.vm.List dom0 name dom0 more",
        b"admin.vm.List  name dom0",
        b"admin.vm.List dom0 name ",
        b"admin.vm.List dom0 keyword dom0",
        b"admin.vm.List dom0 type dom0",
        b"admin.vm.List dom0 NAME dom0",
        b"+arg dom0 name dom0",
        b"admin/vm dom0 name dom0",
        b"admin.vm.List+a\tb dom0 name dom0",
        b"admin.vm.List+\xc3\xa9 dom0 name dom0",
        b"admin.vm.List dom0 name caf\xc3\xa9",
        b"admin.vm.List\n dom0 name dom0",
        b"admin.vm.List dom0 name dom0\n",
    ],
)
def test_malformed_request_line_is_dropped(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(line + b"\0payload")


@pytest.mark.parametrize("data", [b"", b"admin.vm.List+ dom0 name dom0"])
def test_request_ending_within_its_line_is_dropped(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


def test_request_of_exactly_the_limit_decodes() -> None:
    head = admin.encode_request_head(LIST)
    payload = b"x" * (admin.MAX_REQUEST - len(head))
    assert decode(head + payload).payload == payload


def test_request_one_byte_over_the_limit_is_dropped_in_any_split() -> None:
    data = admin.encode_request_head(LIST)
    data += b"x" * (admin.MAX_REQUEST + 1 - len(data))
    with pytest.raises(RemoteProtocolError):
        decode(data)
    decoder = RequestDecoder()
    decoder.receive(data[:-1])
    with pytest.raises(RemoteProtocolError):
        decoder.receive(data[-1:])


def test_endless_request_line_is_dropped_at_the_limit() -> None:
    decoder = RequestDecoder()
    with pytest.raises(RemoteProtocolError):
        for _ in range(admin.MAX_REQUEST + 1):
            decoder.receive(b"a")


def test_streamed_payload_hands_over_what_has_arrived() -> None:
    decoder = RequestDecoder()
    decoder.receive(b"m+ dom0 name x\0abc")
    assert decoder.head == RequestHead("m", "", "dom0", "x")
    assert decoder.stream_payload() == b"abc"
    with pytest.raises(LocalProtocolError):
        decoder.receive(b"d")


def test_streaming_before_the_line_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        RequestDecoder().stream_payload()


@pytest.mark.parametrize(
    "head",
    [
        RequestHead("", "", "dom0", "x"),
        RequestHead("a b", "", "dom0", "x"),
        RequestHead("m", "a b", "dom0", "x"),
        RequestHead("m", "\0", "dom0", "x"),
        RequestHead("m", "é", "dom0", "x"),
        RequestHead("m", "", "", "x"),
        RequestHead("m", "", "dom0", ""),
        RequestHead("m", "", "dom0", "a\nb"),
    ],
)
def test_unsendable_request_line_is_our_error(head: RequestHead) -> None:
    with pytest.raises(LocalProtocolError):
        admin.encode_request_head(head)


def test_oversized_request_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        admin.encode_request(Request(LIST, b"x" * admin.MAX_REQUEST))


def response(data: bytes) -> object:
    decoder = ResponseDecoder()
    assert decoder.receive(data) == []
    return decoder.finish()


def test_success_is_zero_nul_and_result() -> None:
    assert admin.encode_success(b"a\n") == b"0\0a\n"
    assert response(b"0\0a\0b") == Success(b"a\0b")
    assert response(b"0\0") == Success(b"")


def test_failure_has_empty_traceback_and_doubled_percent() -> None:
    assert admin.encode_failure("QubesException", "50% of 3%s") == b"2\0QubesException\0\x0050%% of 3%%s\0"


def test_failure_round_trip_gives_the_message() -> None:
    failure = response(admin.encode_failure("QubesException", "50% of %s"))
    assert isinstance(failure, Failure)
    assert failure.message == "50% of %s"


def test_failure_message_with_nul_and_surrogate_is_escaped() -> None:
    assert admin.encode_failure("E", "a\0b\udcff") == b"2\0E\0\0a\\x00b\\udcff\0"


def test_failure_with_arguments_is_formatted() -> None:
    assert response(b"2\0E\0\0no %s in %r, 5%%\0tag\x007\0") == Failure("E", "no %s in %r, 5%%", ("tag", "7"))
    assert Failure("E", "no %s in %r, 5%%", ("tag", "7")).message == "no tag in 7, 5%"


def test_failure_format_with_width_is_not_expanded() -> None:
    assert Failure("E", "%999999999s %(x)s %", ("a",)).message == "%999999999s %(x)s %"


def test_failure_format_with_too_few_arguments_is_kept() -> None:
    assert Failure("E", "%s and %s", ("a",)).message == "a and %s"


def test_nothing_is_a_refusal() -> None:
    assert ResponseDecoder().finish() == Refused()


@pytest.mark.parametrize("data", [b"0", b"1", b"2\0", b"2\0E\0\0cut", b"2\0E\0", b"2\0E\0\0\xff\0"])
def test_cut_response_is_the_peers_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        response(data)


@pytest.mark.parametrize("data", [b"3\0", b"\0\0", b"0x", b"x", b"HTTP/1.1 200 OK"])
def test_foreign_response_is_the_peers_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        response(data)


def test_endless_success_is_the_peers_error() -> None:
    decoder = ResponseDecoder()
    decoder.receive(b"0\0")
    with pytest.raises(RemoteProtocolError):
        for _ in range(17):
            decoder.receive(b"x" * 1024 * 1024)


def test_event_encodes_to_published_bytes() -> None:
    assert admin.encode_event(EventRecord("", "connection-established")) == b"1\0\0connection-established\0\0"
    assert (
        admin.encode_event(EventRecord("work", "property-set:label", {"name": "label", "newvalue": ""}))
        == b"1\0work\0property-set:label\0name\0label\0newvalue\0\0\0"
    )


def test_several_events_in_one_read_all_come_out() -> None:
    first, second = EventRecord("", "a"), EventRecord("q", "b", {"k": "", "l": "w"})
    decoder = ResponseDecoder()
    assert decoder.receive(admin.encode_event(first) + admin.encode_event(second)) == [first, second]
    assert decoder.finish() is None


def test_stream_ending_within_an_event_is_the_peers_error() -> None:
    decoder = ResponseDecoder()
    assert decoder.receive(b"1\0work\0domain-start\0") == []
    with pytest.raises(RemoteProtocolError):
        decoder.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"1\0a\0b\0\x002\0E\0\0m\0",
        b"1\0a\0\0\0",
        b"1\0\xff\0b\0\0",
        b"1\0a\0" + b"x" * (admin.MAX_EVENT_RECORD + 1),
        b"1\0a\0b\0" + b"k\0v\0" * (admin.MAX_EVENT_KEYS + 1),
    ],
)
def test_malformed_event_is_the_peers_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ResponseDecoder().receive(data)


@pytest.mark.parametrize(
    "record",
    [
        EventRecord("a\0b", "e"),
        EventRecord("a", ""),
        EventRecord("a", "e", {"": "v"}),
        EventRecord("a", "e", {"k": "\0"}),
        EventRecord("a", "e", {"k": "\udcff"}),
        EventRecord("a", "e", {"k": "x" * admin.MAX_EVENT_RECORD}),
        EventRecord("a", "e", {str(i): "" for i in range(admin.MAX_EVENT_KEYS + 1)}),
    ],
)
def test_unsendable_event_is_our_error(record: EventRecord) -> None:
    with pytest.raises(LocalProtocolError):
        admin.encode_event(record)
