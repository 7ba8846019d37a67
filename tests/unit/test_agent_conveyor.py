"""The conveyor between two pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from insula_agent import conveyor, sockets
from insula_agent.conveyor import (
    FRAME_SIZE,
    FULL_BODY,
    MESSAGE_SIZE,
    SMALLEST,
    Conveyor,
    Drawer,
    MessageReader,
    enlarge,
    frame_size,
    waiting,
)
from insula_agent.pieces import drop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A process's output: what the agent reads from, and what the process writes to."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    enlarge(writing, 1 << 20)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def belt() -> Iterator[Conveyor]:
    made = Conveyor()
    yield made
    os.close(made._in)
    os.close(made._out)


def test_header_and_bytes_come_out_in_order(pipe: tuple[int, int], belt: Conveyor) -> None:
    payload = os.urandom(3 * FRAME_SIZE)
    os.write(pipe[1], payload)
    for header in (b"one", b"two", b"three"):
        assert belt.put(header, pipe[0], FRAME_SIZE) == b""
    reading, writing = os.pipe()
    enlarge(writing, 1 << 20)
    belt.move(writing)
    assert belt.size == 0
    parts = [payload[n * FRAME_SIZE : (n + 1) * FRAME_SIZE] for n in range(3)]
    assert os.read(reading, 1 << 20) == b"one" + parts[0] + b"two" + parts[1] + b"three" + parts[2]
    os.close(reading)
    os.close(writing)


def test_what_does_not_fit_is_given_back_in_order(pipe: tuple[int, int], belt: Conveyor) -> None:
    """Our pipe counts pieces: 128 of 2000 bytes are all it holds."""
    payload = os.urandom(200 * 2000)
    for start in range(0, len(payload), 2000):
        # A page each: what was spliced in cannot be added to.
        filler, writing = os.pipe()
        os.write(writing, payload[start : start + 2000])
        assert os.splice(filler, pipe[1], 2000) == 2000
        os.close(filler)
        os.close(writing)
    assert waiting(pipe[0]) == len(payload)
    rest = belt.put(b"header", pipe[0], len(payload))
    assert 0 < belt.size < len(payload)
    assert os.read(belt._out, 1 << 20) + rest == b"header" + payload
    belt.size = 0


def test_no_room_for_the_header_gives_everything_back(pipe: tuple[int, int], belt: Conveyor) -> None:
    os.write(belt._in, bytes(conveyor.OWN_PIPE))
    os.write(pipe[1], b"x" * SMALLEST)
    assert belt.put(b"header", pipe[0], SMALLEST) == b"header" + b"x" * SMALLEST


def test_bytes_taken_by_somebody_else_are_filled_up(pipe: tuple[int, int], belt: Conveyor) -> None:
    os.write(pipe[1], b"x" * 100)
    assert belt.put(b"header", pipe[0], 150) == bytes(50)
    assert belt.size == 106
    belt.clear()
    assert belt.size == 0


def test_full_port_keeps_the_rest(pipe: tuple[int, int], belt: Conveyor) -> None:
    os.write(pipe[1], b"x" * FRAME_SIZE)
    belt.put(b"", pipe[0], FRAME_SIZE)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    enlarge(writing, 8192)
    with pytest.raises(BlockingIOError):
        belt.move(writing)
    assert belt.size == FRAME_SIZE - waiting(reading)
    belt.clear()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("available", "size"),
    [(0, 0), (SMALLEST - 1, 0), (SMALLEST, SMALLEST), (20000, 16384), (1 << 20, FRAME_SIZE), (-64, 0)],
)
def test_frame_has_whole_pages(available: int, size: int) -> None:
    assert frame_size(available) == size


def test_frame_of_framed_bytes_is_a_message_with_its_header_or_whole_pages() -> None:
    assert conveyor.frame_size(1 << 20, is_framed=True) == conveyor.FRAMED_SIZE
    assert conveyor.frame_size(conveyor.FRAMED_SIZE - 1, is_framed=True) % 4096 == 0
    assert conveyor.frame_size(conveyor.SMALLEST - 1, is_framed=True) == 0


def test_framed_bytes_never_fill_our_pipe() -> None:
    """A message has a page for its header and one for each of ours: the pipe counts pages, not bytes."""
    pages = 1 + 1 + -(-conveyor.FRAME_SIZE // 4096)
    assert conveyor.MAX_FRAMED * pages <= conveyor.OWN_PIPE // 4096


@pytest.fixture
def drawer() -> Iterator[Drawer]:
    made = Drawer()
    yield made
    os.close(made._out)
    os.close(made._in)


def number(count: int) -> bytes:
    return b"%08d" % count


def messages(memory: memoryview, used: int) -> list[bytes]:
    """Bodies of what is in the memory."""
    found = []
    position = 0
    while position < used:
        length = int(bytes(memory[position : position + 8]))
        assert 0 < length <= FULL_BODY
        found.append(bytes(memory[position + 8 : position + 8 + length]))
        position += 8 + length
    assert position == used
    return found


@pytest.mark.parametrize("size", [1, 5000, FULL_BODY, FULL_BODY + 1, 3 * FULL_BODY, 4 * FULL_BODY - 77])
@pytest.mark.parametrize("room", [16384, MESSAGE_SIZE, 2 * MESSAGE_SIZE + 3, 300_000])
@pytest.mark.parametrize("is_socket", [False, True])
def test_messages_read_into_memory_have_their_headers_and_fit(
    drawer: Drawer, size: int, room: int, *, is_socket: bool
) -> None:
    memory = memoryview(bytearray(300_000))
    reader = MessageReader(memory, drawer)
    payload = os.urandom(size)
    if is_socket:
        ends = [end.detach() for end in sockets.pair(1 << 20)]
    else:
        ends = list(os.pipe())
        conveyor.enlarge(ends[1], 1 << 20)
    os.set_blocking(ends[0], False)
    os.write(ends[1], payload)
    got = b""
    while waiting(ends[0]):
        used = reader.read(ends[0], room, waiting(ends[0]), number)
        assert 0 < used <= room
        got += b"".join(messages(memory, used))
    assert got == payload
    assert waiting(drawer._out) == 0
    for end in ends:
        os.close(end)


def test_reader_goes_on_while_there_are_whole_messages_and_leaves_the_rest(
    pipe: tuple[int, int], drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process writes while earlier bytes are copied, as one on another CPU does."""
    memory = memoryview(bytearray(5 * MESSAGE_SIZE + 1000))
    sizes = [FULL_BODY, 2 * FULL_BODY, 100]
    read = drawer.read

    def read_and_write(fd: int, places: list[memoryview], size: int) -> int:
        got = read(fd, places, size)
        if sizes:
            os.write(pipe[1], bytes(sizes.pop(0)))
        return got

    monkeypatch.setattr(drawer, "read", read_and_write)
    os.write(pipe[1], bytes(FULL_BODY))
    reader = MessageReader(memory, drawer)
    used = reader.read(pipe[0], len(memory), waiting(pipe[0]), number)
    assert [len(body) for body in messages(memory, used)] == 4 * [FULL_BODY]
    assert waiting(pipe[0]) == 100
    used = reader.read(pipe[0], len(memory), waiting(pipe[0]), number)
    assert [len(body) for body in messages(memory, used)] == [100]


def test_what_is_left_of_the_memory_is_filled_if_that_much_is_there(pipe: tuple[int, int], drawer: Drawer) -> None:
    memory = memoryview(bytearray(MESSAGE_SIZE + 1000))
    reader = MessageReader(memory, drawer)
    os.write(pipe[1], bytes(FULL_BODY + 991))
    used = reader.read(pipe[0], len(memory), waiting(pipe[0]), number)
    assert [len(body) for body in messages(memory, used)] == [FULL_BODY]
    os.write(pipe[1], bytes(FULL_BODY + 2))
    used = reader.read(pipe[0], len(memory), waiting(pipe[0]), number)
    assert [len(body) for body in messages(memory, used)] == [FULL_BODY, 992]
    assert used == len(memory)
    assert waiting(pipe[0]) == 1


def test_memory_that_is_used_again_has_the_headers_of_what_is_in_it(pipe: tuple[int, int], drawer: Drawer) -> None:
    """Those of whole messages stay where they are; anything else that was there in between is written over."""
    memory = memoryview(bytearray(4 * MESSAGE_SIZE))
    reader = MessageReader(memory, drawer)

    def read(*sizes: int) -> None:
        os.write(pipe[1], b"9" * sum(sizes))
        used = reader.read(pipe[0], len(memory), sum(sizes), number)
        assert [len(body) for body in messages(memory, used)] == list(sizes)

    read(FULL_BODY, FULL_BODY, FULL_BODY)
    read(12345)
    read(FULL_BODY, FULL_BODY)
    os.write(pipe[1], b"9" * 3 * FULL_BODY)
    assert reader.read_framed(pipe[0], 3 * FULL_BODY) == 3 * FULL_BODY
    read(FULL_BODY, FULL_BODY, FULL_BODY, FULL_BODY)
    os.write(pipe[1], b"9" * 2 * FULL_BODY)
    used = reader.read(pipe[0], len(memory), 2 * FULL_BODY, lambda size: b"+%07d" % size)
    assert [len(body) for body in messages(memory, used)] == [FULL_BODY, FULL_BODY]
    assert bytes(memory[:8]) == bytes(memory[MESSAGE_SIZE : MESSAGE_SIZE + 8]) == b"+%07d" % FULL_BODY


def test_what_somebody_else_reads_meanwhile_makes_a_shorter_message(pipe: tuple[int, int], drawer: Drawer) -> None:
    memory = memoryview(bytearray(4 * MESSAGE_SIZE))
    reader = MessageReader(memory, drawer)
    os.write(pipe[1], bytes(2 * FULL_BODY))
    assert reader.read(pipe[0], len(memory), 2 * FULL_BODY, number) == 2 * MESSAGE_SIZE
    os.write(pipe[1], bytes(FULL_BODY + 100))
    used = reader.read(pipe[0], len(memory), 2 * FULL_BODY, number)
    assert [len(body) for body in messages(memory, used)] == [FULL_BODY, 100]
    os.write(pipe[1], bytes(2 * FULL_BODY))
    used = reader.read(pipe[0], len(memory), 2 * FULL_BODY, number)
    assert [len(body) for body in messages(memory, used)] == [FULL_BODY, FULL_BODY]


def test_framed_bytes_are_read_as_they_are(pipe: tuple[int, int], drawer: Drawer) -> None:
    memory = memoryview(bytearray(1 << 18))
    reader = MessageReader(memory, drawer)
    payload = os.urandom(200_000)
    os.write(pipe[1], payload)
    assert reader.read_framed(pipe[0], 150_000) == 150_000
    assert memory[:150_000] == payload[:150_000]
    assert reader.read_framed(pipe[0], 1 << 18) == 50_000
    assert memory[:50_000] == payload[150_000:]
    assert reader.read_framed(pipe[0], 1 << 18) == 0


def test_nothing_to_read_leaves_the_memory_alone(pipe: tuple[int, int], drawer: Drawer) -> None:
    memory = memoryview(bytearray(b"x" * 70000))
    assert MessageReader(memory, drawer).read(pipe[0], 70000, 0, number) == 0
    assert bytes(memory) == b"x" * 70000


def test_pipe_is_opened_anew_and_stays_as_it_was_for_others() -> None:
    reading, writing = os.pipe()
    own = conveyor.open_anew(reading)
    assert not os.get_blocking(own)
    assert os.get_blocking(reading)
    os.write(writing, b"words")
    assert os.read(own, 10) == b"words"
    for fd in (reading, writing, own):
        os.close(fd)


def test_what_is_no_pipe_or_not_to_be_read_is_not_opened_anew() -> None:
    """Who may write to a pipe may not have it read by root."""
    reading, writing = os.pipe()
    ours, theirs = sockets.pair()
    null = os.open(os.devnull, os.O_RDONLY)
    assert [conveyor.open_anew(fd) for fd in (writing, ours.fileno(), null)] == [-1, -1, -1]
    for fd in (reading, writing, null):
        os.close(fd)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("sizes", [[10], [70_000], [8, 65536] * 20, [4096] * 300, [1] * 70_000])
@pytest.mark.parametrize("is_socket", [False, True])
def test_what_is_written_arrives_in_order_and_what_has_no_room_stays_the_callers(
    sizes: list[int], *, is_socket: bool
) -> None:
    if is_socket:
        reading, writing = (end.detach() for end in sockets.pair(1 << 18))
    else:
        reading, writing = os.pipe()
        enlarge(writing, 1 << 18)
    for fd in (reading, writing):
        os.set_blocking(fd, False)
    payload = os.urandom(sum(sizes))
    view = memoryview(payload)
    starts = [sum(sizes[:index]) for index in range(len(sizes))] if len(sizes) < 1000 else list(range(len(sizes)))
    pieces: list[bytes | memoryview] = [view[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    got = b""
    while pieces:
        try:
            drop(pieces, conveyor.write(writing, pieces))
        except BlockingIOError:
            # Small pieces of what was written are taken: pages stay that are partly full.
            got += os.read(reading, 5000)
    while len(got) < len(payload):
        got += os.read(reading, 1 << 20)
    assert got == payload
    assert waiting(conveyor.drawer()._out) == 0
    os.close(reading)
    os.close(writing)


def test_writing_to_who_has_gone_leaves_nothing_behind() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    enlarge(writing, 1 << 18)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        conveyor.write(writing, [bytes(200_000)])
    assert waiting(conveyor.drawer()._out) == 0
    os.close(writing)
