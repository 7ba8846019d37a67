"""Codec of the Admin API: round trips, any split, and nothing but the remote error on mutated bytes."""

from __future__ import annotations

import contextlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from insula_proto import admin
from insula_proto.admin import EventRecord, Failure, Request, RequestDecoder, RequestHead, ResponseDecoder, Success
from insula_proto.errors import RemoteProtocolError

graphic = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
methods = st.from_regex(r"[A-Za-z0-9_.-]{1,40}", fullmatch=True)
heads = st.builds(
    RequestHead,
    methods,
    st.text(graphic, max_size=60),
    st.text(graphic, min_size=1, max_size=40),
    st.text(graphic, min_size=1, max_size=40),
)
requests = st.builds(Request, heads, st.binary(max_size=300))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
names = texts.filter(bool)
events = st.builds(EventRecord, texts, names, st.dictionaries(names, texts, max_size=6))


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    points = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(points)]


cuts = st.lists(st.integers(0, 10**6), max_size=8)


@given(requests, cuts)
def test_request_round_trip_in_any_split(request: Request, at: list[int]) -> None:
    decoder = RequestDecoder()
    for chunk in chunks(admin.encode_request(request), at):
        decoder.receive(chunk)
    assert decoder.finish() == request


@given(st.lists(events, max_size=5), cuts)
def test_events_round_trip_in_any_split(records: list[EventRecord], at: list[int]) -> None:
    decoder = ResponseDecoder()
    received = []
    for chunk in chunks(b"".join(map(admin.encode_event, records)), at):
        received += decoder.receive(chunk)
    assert received == records
    decoder.finish()


@given(st.binary(max_size=200), cuts)
def test_success_round_trip_in_any_split(payload: bytes, at: list[int]) -> None:
    decoder = ResponseDecoder()
    for chunk in chunks(admin.encode_success(payload), at):
        assert decoder.receive(chunk) == []
    assert decoder.finish() == Success(payload)


@given(texts, cuts)
def test_failure_round_trip_in_any_split(message: str, at: list[int]) -> None:
    decoder = ResponseDecoder()
    encoded = admin.encode_failure("QubesException", message)
    for chunk in chunks(encoded, at):
        decoder.receive(chunk)
    failure = decoder.finish()
    assert isinstance(failure, Failure)
    assert failure.message == message
    # What published clients compute, with Python's own formatting:
    assert encoded.split(b"\0")[3].decode() % () == message


@given(requests, cuts, st.binary(min_size=1, max_size=3), st.integers(0, 10**6))
def test_mutated_request_raises_remote_error_only(request: Request, at: list[int], junk: bytes, where: int) -> None:
    data = bytearray(admin.encode_request(request))
    position = where % len(data)
    data[position : position + len(junk)] = junk
    decoder = RequestDecoder()
    with contextlib.suppress(RemoteProtocolError):
        for chunk in chunks(bytes(data), at):
            decoder.receive(chunk)
        decoder.finish()


@given(st.sampled_from([b"", b"0\0", b"1\0", b"2\0"]), st.binary(max_size=80), cuts)
def test_any_response_raises_remote_error_only(start: bytes, rest: bytes, at: list[int]) -> None:
    decoder = ResponseDecoder()
    with contextlib.suppress(RemoteProtocolError):
        for chunk in chunks(start + rest, at):
            decoder.receive(chunk)
        decoder.finish()
