from __future__ import annotations

import os
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula_proto import limits, mux, mux_frames
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.mux import GUEST, HOST, Mux
from insula_proto.mux_events import (
    CreditReceived,
    DataReceived,
    FinReceived,
    MemoryOffered,
    MuxEvent,
    Reset,
    SharedReceived,
    SlotFreed,
    StreamOpened,
    StreamReset,
    Synced,
    current,
)

TOKEN = b"where the memory"


def frame(stream: int, kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<III", stream, kind, len(body) if length is None else length) + body


def take(end: Mux) -> bytes:
    data = b"".join(end.data_to_send(1 << 30))
    end.sent(len(data))
    return data


class Pair:
    """Two ends joined by a pipe that hands everything over at once."""

    def __init__(self, **guest_options: int) -> None:
        self.host = Mux(mux.HOST)
        self.guest = Mux(mux.GUEST, **guest_options)
        self.host.start()
        self.settle()
        assert self.host.in_sync
        assert self.guest.in_sync

    def to_guest(self) -> list[MuxEvent]:
        return self.guest.receive(take(self.host))

    def to_host(self) -> list[MuxEvent]:
        return self.host.receive(take(self.guest))

    def settle(self) -> tuple[list[MuxEvent], list[MuxEvent]]:
        """Move bytes until both are silent; what the host, then what the guest saw."""
        at_host: list[MuxEvent] = []
        at_guest: list[MuxEvent] = []
        while self.host.queued or self.guest.queued:
            at_guest += self.to_guest()
            at_host += self.to_host()
        return at_host, at_guest


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_handshake_host_starts_both_in_sync() -> None:
    host, guest = Mux(mux.HOST), Mux(mux.GUEST)
    host.start()
    assert guest.receive(take(host)) == [Synced(2)]
    assert host.receive(take(guest)) == [Synced(2)]


def test_handshake_guest_comes_later_asks_and_gets_it() -> None:
    host, guest = Mux(mux.HOST), Mux(mux.GUEST)
    host.start()
    take(host)  # lost: nobody was there
    guest.start()
    assert host.receive(take(guest)) == []
    assert guest.receive(take(host)) == [Synced(2)]
    assert host.receive(take(guest)) == [Synced(2)]


def test_handshake_repeated_hello_only_last_answer_counts() -> None:
    host, guest = Mux(mux.HOST), Mux(mux.GUEST)
    host.start()
    first = take(host)
    host.start()
    guest.receive(first)
    guest.open(512)  # belongs to an epoch the host has given up
    guest.send(1, b"old")
    assert guest.receive(take(host)) == [Reset(), Synced(2)]
    stream = guest.open(111)
    assert host.receive(take(guest)) == [Synced(2), StreamOpened(stream, 111)]


def test_stream_data_both_ways_with_half_close(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.host.send(stream, b"question")
    pair.host.finish(stream)
    assert pair.to_guest() == [StreamOpened(stream, 513), DataReceived(stream, b"question"), FinReceived(stream)]
    pair.guest.send(stream, b"answer")
    pair.guest.finish(stream)
    # No credit is announced: that of the opener's direction is of no use after its FIN.
    assert pair.to_host() == [DataReceived(stream, b"answer"), FinReceived(stream)]
    assert not pair.host.is_open(stream)
    assert not pair.guest.is_open(stream)


def test_stream_numbers_host_even_guest_odd(pair: Pair) -> None:
    assert [pair.host.open(1), pair.host.open(2)] == [2, 4]
    assert [pair.guest.open(1), pair.guest.open(2)] == [1, 3]


def test_reset_closes_both_directions_and_late_frames_are_ignored(pair: Pair) -> None:
    """MC-21: data for a closed stream is never delivered to another stream."""
    stream = pair.host.open(513)
    pair.settle()
    pair.guest.send(stream, b"late")
    pair.host.reset(stream, mux_frames.RESET_BUSY)
    other = pair.host.open(514)
    assert pair.to_host() == []
    assert pair.to_guest() == [StreamReset(stream, mux_frames.RESET_BUSY), StreamOpened(other, 514)]
    assert pair.guest.writable(stream) == 0


def test_send_more_than_credit_refused_locally(pair: Pair) -> None:
    stream = pair.host.open(513)
    assert pair.host.writable(stream) == limits.MUX_INITIAL_CREDIT
    with pytest.raises(LocalProtocolError):
        pair.host.send(stream, bytes(limits.MUX_INITIAL_CREDIT + 1))
    at_host, _ = pair.settle()
    assert at_host == [CreditReceived(stream)]
    assert pair.host.writable(stream) == limits.MUX_MAX_WINDOW


def test_peer_never_reads_writer_is_paced_and_memory_bounded(pair: Pair) -> None:
    """MC-14."""
    stream = pair.host.open(513)
    pair.settle()
    sent = 0
    while pair.host.writable(stream):
        part = bytes(min(50000, pair.host.writable(stream)))
        pair.host.send(stream, part)
        sent += len(part)
        pair.settle()  # the guest receives but its application consumes nothing
    assert sent == limits.MUX_MAX_WINDOW
    pair.guest.consumed(stream, limits.MUX_MAX_WINDOW)
    at_host, _ = pair.settle()
    assert at_host == [CreditReceived(stream)]
    assert pair.host.writable(stream) == limits.MUX_MAX_WINDOW


def test_pipe_full_no_stream_is_writable(pair: Pair) -> None:
    """MC-14: the sum over all streams is bounded too."""
    streams = [pair.host.open(513) for _ in range(60)]
    pair.settle()
    for stream in streams:
        if pair.host.writable(stream) >= 60000:
            pair.host.send(stream, bytes(60000))
    assert limits.MUX_MAX_QUEUED_DATA <= pair.host.queued < limits.MUX_MAX_QUEUED
    assert not any(pair.host.writable(stream) for stream in streams)


def test_windows_sum_is_bounded() -> None:
    """What a peer that fills every window, on streams it opens and on streams opened to it, can make us hold."""
    pair = Pair()
    for _ in range(300):
        pair.host.open(513)
        pair.guest.open(111)
    pair.settle()
    for end in (pair.host, pair.guest):
        windows = [state.window for state in end._streams.by_number.values()]
        assert len(windows) == 600
        assert sum(windows) <= limits.MUX_WINDOW_POOL + 600 * limits.MUX_SMALL_WINDOW
        assert windows[:4] == 4 * [limits.MUX_MAX_WINDOW]
        assert windows[-1] == limits.MUX_SMALL_WINDOW


def test_streams_opened_and_closed_give_their_budget_back(pair: Pair) -> None:
    for _ in range(1000):
        stream = pair.host.open(513)
        pair.settle()
        pair.host.reset(stream)
        pair.settle()
    assert pair.guest._streams.granted == pair.host._streams.granted == 0
    assert pair.guest._streams.count_of_peer == 0


def test_too_many_streams_refused_as_busy_others_stay() -> None:
    """MC-15."""
    pair = Pair(max_peer_streams=2)
    streams = [pair.host.open(513) for _ in range(3)]
    at_host, at_guest = pair.settle()
    assert [event.stream for event in at_guest if isinstance(event, StreamOpened)] == streams[:2]
    assert StreamReset(streams[2], mux_frames.RESET_BUSY) in at_host
    assert pair.host.is_open(streams[0])


def test_more_consumed_than_received_refused_locally(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.settle()
    with pytest.raises(LocalProtocolError):
        pair.guest.consumed(stream, 1)


def test_fin_twice_or_operations_on_closed_stream_do_nothing(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.host.finish(stream)
    pair.host.finish(stream)
    pair.host.reset(stream)
    pair.host.reset(stream)
    pair.host.consumed(stream, 10)
    assert pair.to_guest() == [StreamOpened(stream, 513), FinReceived(stream), StreamReset(stream, 0)]


HOSTILE = {
    "data_of_length_0": frame(1, mux_frames.DATA),
    "data_longer_than_limit": frame(1, mux_frames.DATA, length=limits.MUX_MAX_DATA + 1),
    "data_of_negative_length": frame(1, mux_frames.DATA, length=0xFFFFFFFF),
    "data_on_unopened_stream": frame(3, mux_frames.DATA, b"x"),
    "data_on_stream_of_ours_not_opened": frame(4, mux_frames.DATA, b"x"),
    "data_on_stream_0": frame(0, mux_frames.DATA, b"x"),
    "data_beyond_credit": frame(1, mux_frames.DATA, bytes(65536)) * (limits.MUX_MAX_WINDOW // 65536 + 1),
    "data_after_fin": frame(1, mux_frames.FIN) + frame(1, mux_frames.DATA, b"x"),
    "fin_twice": frame(1, mux_frames.FIN) * 2,
    "fin_with_body": frame(1, mux_frames.FIN, b"x"),
    "unknown_type": frame(1, 7),
    "unknown_type_large": frame(1, 0xFFFFFFFF),
    "open_twice": frame(1, mux_frames.OPEN, struct.pack("<II", 1, 1)),
    "open_of_our_parity": frame(8, mux_frames.OPEN, struct.pack("<II", 1, 1)),
    "open_port_0": frame(3, mux_frames.OPEN, struct.pack("<II", 0, 1)),
    "open_port_too_large": frame(3, mux_frames.OPEN, struct.pack("<II", 65536, 1)),
    "open_window_0": frame(3, mux_frames.OPEN, struct.pack("<II", 1, 0)),
    "open_window_too_large": frame(3, mux_frames.OPEN, struct.pack("<II", 1, limits.MUX_MAX_WINDOW + 1)),
    "credit_0": frame(1, mux_frames.CREDIT, bytes(4)),
    "credit_overflow": frame(1, mux_frames.CREDIT, b"\xff" * 4),
    "credit_wrong_length": frame(1, mux_frames.CREDIT, bytes(3)),
    "reset_of_unopened": frame(3, mux_frames.RESET, bytes(4)),
    "hello_without_magic": frame(0, mux_frames.HELLO, bytes(52)),
    "hello_on_a_stream": frame(1, mux_frames.HELLO, bytes(52)),
    "answer_not_asked": struct.pack(
        "<III16sI16s16s", 0, mux_frames.HELLO, 52, mux_frames.MAGIC, 1, b"n" * 16, b"x" * 16
    ),
    "version_0": struct.pack("<III16sI16s16s", 0, mux_frames.HELLO, 52, mux_frames.MAGIC, 0, b"n" * 16, bytes(16)),
    "pad_on_a_stream": frame(1, mux_frames.PAD),
    "pad_with_body": frame(0, mux_frames.PAD, b"x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_host_hostile_frame_drops_peer_and_recovers_by_start(pair: Pair, name: str) -> None:
    """MC-11, MC-12, MC-21."""
    pair.guest.open(512)
    pair.settle()
    with pytest.raises(RemoteProtocolError):
        pair.host.receive(HOSTILE[name])
    assert not pair.host.in_sync
    with pytest.raises(LocalProtocolError):
        pair.host.receive(b"more")
    pair.host.start()
    pair.settle()
    assert pair.host.in_sync
    assert pair.guest.in_sync


def test_guest_fault_in_sync_hunts_from_there_and_asks(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.settle()
    [event] = pair.guest.receive(frame(stream, 7) + b"rest")
    assert isinstance(event, Reset)
    assert "type 7" in event.fault
    assert not pair.guest.in_sync
    pair.settle()
    assert pair.host.in_sync
    assert pair.guest.in_sync


def test_guest_provokes_answers_and_never_reads_dropped(pair: Pair) -> None:
    """MC-14."""
    opens = b"".join(frame(stream, mux_frames.OPEN, struct.pack("<II", 1, 1)) for stream in range(1, 400001, 2))
    with pytest.raises(RemoteProtocolError):
        pair.host.receive(opens)


def test_guest_endless_hello_requests_queue_one_answer(pair: Pair) -> None:
    guest = Mux(mux.GUEST)
    guest.start(pad=False)
    request = take(guest)
    pair.host.receive(request * 1000)
    assert pair.host.queued == len(request)


def test_receive_any_bytes_memory_bounded() -> None:
    """MC-11: peak memory while 4 MB of noise are searched for a HELLO, and after."""
    host = Mux(mux.HOST)
    host.start()
    noise = os.urandom(65536)
    tracemalloc.start()
    for _ in range(64):
        host.receive(noise)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000


def test_hunting_without_end_gives_up() -> None:
    host = Mux(mux.HOST)
    host.start()
    chunk = bytes(1 << 20)
    with pytest.raises(RemoteProtocolError):
        for _ in range(limits.MUX_MAX_HUNT // len(chunk) + 2):
            host.receive(chunk)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["open", "send", "finish", "reset", "offer", "lend"]),
        st.booleans(),
        st.integers(0, 5),
        st.binary(max_size=90),
    ),
    max_size=25,
)


def perform(pair: Pair, actions: list[tuple[str, bool, int, bytes]]) -> None:
    for action, by_host, choice, data in actions:
        end = pair.host if by_host else pair.guest
        streams = sorted(end._streams.by_number)
        if action == "open":
            end.open(500 + choice)
        elif streams:
            stream = streams[choice % len(streams)]
            if action == "send" and end.writable(stream) >= len(data):
                end.send(stream, data)
            elif action == "offer" and pair.host.may_offer_memory:
                pair.host.offer_memory(TOKEN)
                pair.settle()
                pair.guest.accept_memory(TOKEN)
                pair.settle()
            elif action == "lend" and data and end.writable(stream) >= len(data) and (slot := end.reserve_slot()):
                end.send_shared(stream, slot, len(data))
            elif action == "finish":
                end.finish(stream)
            elif action == "reset":
                end.reset(stream, choice)


def merged(events: list[MuxEvent]) -> list[MuxEvent]:
    """Join what was handed on in parts."""
    result: list[MuxEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream == event.stream:
            result[-1] = DataReceived(event.stream, last.data + event.data)
        else:
            result.append(event)
    return result


@given(ACTIONS, st.integers(1, 70))
def test_receive_any_split_returns_same_events(actions: list[tuple[str, bool, int, bytes]], size: int) -> None:
    whole, split = Pair(), Pair()
    perform(whole, actions)
    perform(split, actions)
    expected = whole.to_guest()
    data = take(split.host)
    events = [e for start in range(0, len(data), size) for e in split.guest.receive(data[start : start + size])]
    assert merged(events) == merged(expected)


@settings(max_examples=200)
@given(ACTIONS, st.data())
def test_receive_mutated_bytes_raises_only_remote_error(
    actions: list[tuple[str, bool, int, bytes]], data: st.DataObject
) -> None:
    """MC-11, MC-12, MC-21."""
    pair = Pair()
    perform(pair, actions)
    for source, target in ((pair.host, pair.guest), (pair.guest, pair.host)):
        wire = bytearray(take(source) or b"\0")
        for _ in range(data.draw(st.integers(1, 3))):
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
        try:
            target.receive(bytes(wire))
        except RemoteProtocolError:
            assert not target.in_sync


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=3000), st.data())
def test_resync_new_host_in_the_middle_of_a_frame_both_agree(payload: bytes, data: st.DataObject) -> None:
    """A session died while it wrote; the guest was not told, and reads the new one's padding as old payload."""
    pair = Pair()
    stream = pair.host.open(513)
    pair.host.send(stream, payload)
    old = take(pair.host)
    cut = data.draw(st.integers(0, len(old)))
    stale = b""
    if data.draw(st.booleans()):
        pair.guest.receive(old[:cut])
        stale = take(pair.guest)
        stale = stale[data.draw(st.integers(0, len(stale))) :]
    else:
        pair.guest.receive(old[:cut])
    new = Mux(mux.HOST)
    new.start()
    events = pair.guest.receive(take(new))
    assert isinstance(events[-1], Synced)
    assert any(isinstance(event, Reset) for event in events)
    assert new.receive(stale + take(pair.guest))[-1:] in ([], [Synced(2)])
    pair.host = new
    pair.settle()
    assert pair.host.in_sync
    stream = pair.host.open(513)
    assert pair.to_guest() == [StreamOpened(stream, 513)]


@given(st.integers(0, 70000))
def test_resync_cut_anywhere_in_a_largest_frame_padding_suffices(cut: int) -> None:
    pair = Pair()
    stream = pair.host.open(513)
    pair.settle()
    pair.host.send(stream, b"\xff" * limits.MUX_MAX_DATA)
    pair.guest.receive(take(pair.host)[:cut])
    pair.host.start()
    pair.settle()
    assert pair.host.in_sync
    assert pair.guest.in_sync
    assert not pair.guest._streams.by_number


def test_resync_new_guest_in_the_middle_of_a_frame_both_agree(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.host.send(stream, bytes(20000))
    old = take(pair.host)
    guest = Mux(mux.GUEST)
    guest.start()
    pair.guest = guest
    assert guest.receive(old[5000:]) == []
    at_host, at_guest = pair.settle()
    assert at_host == [Reset(), Synced(2)]
    assert at_guest == [Synced(2)]
    assert not pair.host.is_open(stream)


@given(st.integers(1, 12), st.integers(1, limits.MUX_MAX_DATA), st.data())
def test_resync_guest_died_inside_a_frame_next_one_is_heard_when_it_asks_again(
    header: int, size: int, data: st.DataObject
) -> None:
    """The first request is taken for the rest of the frame; the second one comes with padding."""
    pair = Pair()
    stream = pair.guest.open(512)
    pair.settle()
    pair.guest.send(stream, b"\xff" * size)
    written = header if header < 12 else data.draw(st.integers(12, size + 11))
    seen: list[MuxEvent] = []

    def host_receives(untrusted_data: bytes) -> None:
        try:
            seen.extend(pair.host.receive(untrusted_data))
        except RemoteProtocolError:
            # What was cut made no sense to it; it begins anew after a pause.
            pair.host.start()

    host_receives(take(pair.guest)[:written])
    pair.guest = Mux(mux.GUEST)
    pair.guest.start(pad=False)
    host_receives(take(pair.guest))
    pair.guest.start()
    while pair.host.queued or pair.guest.queued:
        pair.to_guest()
        host_receives(take(pair.guest))
    assert pair.host.in_sync
    assert pair.guest.in_sync
    assert not pair.host.is_open(stream)


def test_answer_to_an_earlier_hello_after_padding_counts_no_more() -> None:
    """A guest cannot return to an epoch that is over, with what the host has said since its end still to come."""
    host = Mux(mux.HOST)
    host.start()
    asked = take(host)[-16 - 16 : -16]
    answer = struct.pack("<III16sI16s16s", 0, mux_frames.HELLO, 52, mux_frames.MAGIC, 2, b"n" * 16, asked)
    assert host.receive(answer) == [Synced(2)]
    assert host.receive(frame(0, mux_frames.PAD) + answer) == [Reset()]
    assert not host.in_sync


def test_resync_keeps_rest_of_a_frame_the_pipe_has_begun(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.settle()
    pair.host.send(stream, b"a" * 1000)
    pair.host.send(stream, b"b" * 1000)
    begun = b"".join(pair.host.data_to_send())[:500]
    pair.host.sent(500)
    pair.host.start(pad=False)
    events = pair.guest.receive(begun + take(pair.host))
    assert merged(events) == [DataReceived(stream, b"a" * 1000), Reset(), Synced(2)]


def test_resync_between_header_and_body_keeps_the_body(pair: Pair) -> None:
    """Bulk is queued apart from its header; the pipe may have taken the header alone."""
    stream = pair.host.open(513)
    pair.settle()
    pair.host.send(stream, b"a" * 10000)
    pair.host.send(stream, b"b" * 10000)
    header = bytes(pair.host.data_to_send()[0])
    pair.host.sent(len(header))
    pair.host.start(pad=False)
    events = pair.guest.receive(header + take(pair.host))
    assert merged(events) == [DataReceived(stream, b"a" * 10000), Reset(), Synced(2)]
    assert pair.host.queued == 0


def test_bulk_is_queued_without_a_copy(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.settle()
    data = bytes(50000)
    pair.host.send(stream, data)
    assert any(buffer is data for buffer in pair.host.data_to_send())


def test_pieces_go_in_one_frame_where_they_fit(pair: Pair) -> None:
    stream = pair.host.open(513)
    pair.settle()
    pair.host.send(stream, b"head", b"x" * 5000, b"", b"tail")
    assert take(pair.host) == frame(stream, mux_frames.DATA, b"head" + b"x" * 5000 + b"tail")
    pair.host.send(stream, b"head", bytes(limits.MUX_MAX_DATA))
    assert take(pair.host) == frame(stream, mux_frames.DATA, b"head") + frame(
        stream, mux_frames.DATA, bytes(limits.MUX_MAX_DATA)
    )
    pair.host.send(stream, b"", b"")
    assert pair.host.queued == 0


def test_views_are_of_the_callers_buffer_and_copies_are_not(pair: Pair) -> None:
    for views in (True, False):
        host, guest = Mux(HOST), Mux(GUEST, views=views)
        host.start()
        guest.receive(take(host))
        host.receive(take(guest))
        stream = host.open(513)
        host.send(stream, b"before")
        buffer = bytearray(take(host))
        (event,) = [e for e in guest.receive(memoryview(buffer)) if isinstance(e, DataReceived)]
        buffer[-6:] = b"after!"
        assert bytes(event.data) == (b"after!" if views else b"before")


def test_handshake_in_a_view_split_anywhere() -> None:
    host = Mux(HOST)
    host.start()
    greeting = memoryview(take(host))
    for cut in range(len(greeting) - 200, len(greeting)):
        guest = Mux(GUEST, views=True)
        events = guest.receive(greeting[:cut]) + guest.receive(greeting[cut:])
        assert events == [Synced(2)]


def test_frame_brought_by_other_means_counts_and_is_completed_before_a_handshake(pair: Pair) -> None:
    stream = pair.guest.open(512)
    pair.settle()
    before = pair.guest.writable(stream)
    begun = pair.guest.begin(stream, 1000) + b"x" * 400
    assert pair.guest.writable(stream) == before - 1000
    pair.guest.complete(b"y" * 600)
    pair.guest.start(pad=False)
    assert take(pair.guest).startswith(b"y" * 600 + frame(0, mux_frames.HELLO, length=52))
    assert merged(pair.host.receive(begun + b"y" * 600)) == [DataReceived(stream, b"x" * 400 + b"y" * 600)]


def test_frame_brought_by_other_means_only_while_nothing_is_queued(pair: Pair) -> None:
    stream = pair.guest.open(512)
    with pytest.raises(LocalProtocolError):
        pair.guest.begin(stream, 1)
    pair.settle()
    for size in (0, pair.guest.writable(stream) + 1, limits.MUX_MAX_DATA + 1):
        with pytest.raises(LocalProtocolError):
            pair.guest.begin(stream, size)
    pair.guest.send(stream, b"x")
    with pytest.raises(LocalProtocolError):
        pair.guest.complete(b"rest")


def test_transport_lost_forgets_everything(pair: Pair) -> None:
    stream = pair.guest.open(512)
    pair.guest.send(stream, b"x")
    assert pair.guest.transport_lost() == [Reset()]
    assert pair.guest.transport_lost() == []
    assert pair.guest.queued == 0
    assert not pair.guest.is_open(stream)
    pair.host.start()
    pair.settle()
    assert pair.guest.in_sync


def test_events_of_epochs_that_ended_in_the_same_input_are_void() -> None:
    """A guest that boots slowly finds several HELLOs of its host in one read."""
    host, guest = Mux(HOST), Mux(GUEST)
    received = b""
    for _ in range(3):
        host.start()
        received += b"".join(bytes(buffer) for buffer in host.data_to_send(1 << 20))
        host.sent(host.queued)
    events = guest.receive(received)
    assert [type(event) for event in events].count(Synced) == 3
    last = current(events)
    assert [type(event) for event in last] == [Reset, Synced]
    assert guest.open(111)
    assert current(last[1:]) == last[1:]
    assert current([]) == []


# Memory that both sides see


@pytest.fixture
def sharing(pair: Pair) -> Pair:
    pair.host.offer_memory(TOKEN)
    assert pair.to_guest() == [MemoryOffered(TOKEN)]
    pair.guest.accept_memory(TOKEN)
    assert pair.to_host() == []
    return pair


def test_memory_is_offered_once_and_shared_when_the_guest_has_it(pair: Pair) -> None:
    assert pair.host.may_offer_memory
    assert not pair.guest.may_offer_memory
    pair.host.offer_memory(TOKEN)
    assert not pair.host.may_offer_memory
    with pytest.raises(LocalProtocolError):
        pair.host.offer_memory(TOKEN)
    assert pair.host.reserve_slot() == 0
    pair.to_guest()
    assert not pair.guest.has_memory
    pair.guest.accept_memory(TOKEN)
    pair.to_host()
    assert pair.host.has_memory
    assert pair.guest.has_memory


def test_shared_bytes_come_in_order_with_others_and_count_against_the_window(sharing: Pair) -> None:
    stream = sharing.host.open(513)
    sharing.settle()
    room = sharing.host.writable(stream)
    sharing.host.send(stream, b"before")
    slot = sharing.host.reserve_slot()
    sharing.host.send_shared(stream, slot, 1000)
    assert sharing.host.writable(stream) == 0
    assert sharing.host.credit(stream) == room - 1006
    assert sharing.to_guest() == [DataReceived(stream, b"before"), SharedReceived(stream, slot, 1000)]
    sharing.guest.free(slot)
    assert sharing.to_host() == [SlotFreed(stream)]
    assert sharing.host.writable(stream) == room - 1006
    sharing.host.send(stream, b"after")
    assert sharing.to_guest() == [DataReceived(stream, b"after")]


def test_stream_whose_slot_is_under_way_lends_one_more_and_sends_nothing_else_and_others_do(sharing: Pair) -> None:
    first, second = sharing.host.open(513), sharing.host.open(514)
    sharing.settle()
    for count in range(limits.BULK_MAX_LENT):
        assert sharing.host.lent(first) == count
        sharing.host.send_shared(first, sharing.host.reserve_slot(), 1)
        assert sharing.host.writable(first) == 0
    with pytest.raises(LocalProtocolError):
        sharing.host.send_shared(first, sharing.host.reserve_slot(), 1)
    assert sharing.host.writable(second) > 0
    slots = [event.slot for event in sharing.to_guest() if isinstance(event, SharedReceived)]
    for slot in slots:
        assert sharing.host.writable(first) == 0
        sharing.guest.free(slot)
        sharing.to_host()
    assert sharing.host.writable(first)


def test_shared_bytes_beyond_the_credit_or_a_slot_are_refused_locally(sharing: Pair) -> None:
    stream = sharing.guest.open(111)
    slot = sharing.guest.reserve_slot()
    for size in (0, limits.MUX_INITIAL_CREDIT + 1):
        with pytest.raises(LocalProtocolError):
            sharing.guest.send_shared(stream, slot, size)
    with pytest.raises(LocalProtocolError):
        sharing.guest.send_shared(stream, slot + 1 if slot < 7 else 1, 5)


def test_shared_bytes_for_a_stream_that_was_closed_meanwhile_are_given_back(sharing: Pair) -> None:
    stream = sharing.host.open(513)
    sharing.settle()
    slot = sharing.guest.reserve_slot()
    sharing.guest.send_shared(stream, slot, 5)
    sharing.host.reset(stream)
    assert sharing.to_host() == [SharedReceived(stream, slot, 5)]
    sharing.host.free(slot)
    sharing.host.free(slot)
    assert SlotFreed(stream) in sharing.to_guest()
    assert not sharing.host.queued


def test_new_epoch_has_no_memory_until_it_is_offered_again_and_old_slots_are_nobodys(sharing: Pair) -> None:
    stream = sharing.host.open(513)
    sharing.settle()
    ours = sharing.host.reserve_slot()
    slot = sharing.guest.reserve_slot()
    sharing.guest.send_shared(stream, slot, 5)
    sharing.to_host()
    sharing.host.start()
    sharing.settle()
    assert sharing.host.in_sync
    assert not sharing.host.has_memory
    assert not sharing.guest.has_memory
    sharing.host.free(slot)
    sharing.host.release_slot(ours)
    assert not sharing.host.queued
    sharing.host.offer_memory(TOKEN)
    sharing.to_guest()
    sharing.guest.accept_memory(b"an older offer's")
    assert not sharing.guest.queued
    sharing.guest.accept_memory(TOKEN)
    sharing.to_host()
    assert sharing.host.reserve_slot()


def test_peer_of_version_1_is_offered_nothing() -> None:
    host = Mux(mux.HOST, nonce=lambda size: b"n" * size)
    host.start()
    host.receive(frame(0, mux_frames.HELLO, struct.pack("<16sI16s16s", mux_frames.MAGIC, 1, b"g" * 16, b"n" * 16)))
    assert host.in_sync
    assert not host.may_offer_memory
    with pytest.raises(RemoteProtocolError):
        host.receive(frame(0, mux_frames.MEMORY, TOKEN))


HOSTILE_MEMORY = {
    "another token": [frame(0, mux_frames.MEMORY, bytes(16))],
    "memory accepted twice": [frame(0, mux_frames.MEMORY, TOKEN), frame(0, mux_frames.MEMORY, TOKEN)],
    "memory on a stream": [frame(2, mux_frames.MEMORY, TOKEN)],
    "shared before it was accepted": [frame(2, mux_frames.SHARED, struct.pack("<II", 1, 5))],
    "freed before it was accepted": [frame(0, mux_frames.FREED, struct.pack("<I", 8))],
    "a slot of the host's": [frame(0, mux_frames.MEMORY, TOKEN), frame(2, mux_frames.SHARED, struct.pack("<II", 8, 5))],
    "the slot of the token": [
        frame(0, mux_frames.MEMORY, TOKEN),
        frame(2, mux_frames.SHARED, struct.pack("<II", 0, 5)),
    ],
    "beyond the memory": [frame(0, mux_frames.MEMORY, TOKEN), frame(2, mux_frames.SHARED, struct.pack("<II", 16, 5))],
    "nothing": [frame(0, mux_frames.MEMORY, TOKEN), frame(2, mux_frames.SHARED, struct.pack("<II", 1, 0))],
    "more than a slot": [
        frame(0, mux_frames.MEMORY, TOKEN),
        frame(2, mux_frames.SHARED, struct.pack("<II", 1, limits.BULK_SLOT_SIZE + 1)),
    ],
    "the same slot twice": [
        frame(0, mux_frames.MEMORY, TOKEN),
        *2 * [frame(2, mux_frames.SHARED, struct.pack("<II", 1, 5))],
    ],
    "for a stream never opened": [
        frame(0, mux_frames.MEMORY, TOKEN),
        frame(4, mux_frames.SHARED, struct.pack("<II", 1, 5)),
    ],
    "after FIN": [
        frame(0, mux_frames.MEMORY, TOKEN),
        frame(2, mux_frames.FIN),
        frame(2, mux_frames.SHARED, struct.pack("<II", 1, 5)),
    ],
    "beyond the credit": [
        frame(0, mux_frames.MEMORY, TOKEN),
        *[frame(2, mux_frames.SHARED, struct.pack("<II", slot, limits.BULK_SLOT_SIZE)) for slot in (1, 2, 3)],
    ],
    "freed what it was not lent": [
        frame(0, mux_frames.MEMORY, TOKEN),
        frame(0, mux_frames.FREED, struct.pack("<I", 9)),
    ],
    "freed on a stream": [frame(0, mux_frames.MEMORY, TOKEN), frame(2, mux_frames.FREED, struct.pack("<I", 9))],
}


@pytest.mark.parametrize("name", HOSTILE_MEMORY)
def test_host_hostile_frame_about_memory_drops_the_guest(pair: Pair, name: str) -> None:
    """MC-11, MC-12."""
    pair.host.open(513)
    pair.settle()
    pair.host.offer_memory(TOKEN)
    with pytest.raises(RemoteProtocolError):
        for data in HOSTILE_MEMORY[name]:
            pair.host.receive(data)
    assert not pair.host.in_sync
