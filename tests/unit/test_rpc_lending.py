"""Memory of a qube lent to a caller: what is said, what is refused, and the order of bytes that come by two ways."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.hal import frames
from insula.rpc import lending
from insula.rpc.exchange import LARGE, Exchange, Sink, Source
from insula.rpc.lending import LOAN, MAX_LENT, SMALLEST, WORD, Borrower, Lender, Loans
from insula_proto import bulk, limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExitCode, Hello

PATIENCE_S = 60.0
SLOTS = bulk.SIZE // bulk.SLOT_SIZE


class World:
    """A session's lender and a caller, joined by a socket pair."""

    def __init__(self) -> None:
        self.undo = ExitStack()
        ours, theirs = socket.socketpair()
        self.ours, self.theirs = self.undo.enter_context(ours), self.undo.enter_context(theirs)
        ours.setblocking(False)
        self.lender = Lender()
        self.undo.callback(self.lender.close)
        self.lender.descriptor = frames.make(limits.BULK_SIZE, frames.BULK_NAME)
        self.borrower = Borrower(ours, self.lender)
        self.loans = Loans(theirs)
        self.returned: list[tuple[int, int]] = []
        self.borrower.on_returned = lambda slot, size: self.returned.append((slot, size))

    def write(self, slot: int, data: bytes) -> None:
        os.pwrite(self.lender.descriptor, data, bulk.offset(slot))

    def hear(self) -> None:
        """The session reads what the caller said."""
        self.borrower.receive(self.ours.recv(4096))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with made.undo:
        yield made


@pytest.fixture
def willing(world: World) -> World:
    """The caller has asked to be lent memory."""
    world.loans.ask()
    world.hear()
    return world


def test_lent_bytes_are_read_where_the_qube_wrote_them_and_the_slot_comes_back(willing: World) -> None:
    for slot, position in ((1, 300_000), (2, 500_000), (1, 700_000)):
        willing.write(slot, b"%d at %d" % (slot, position))
        assert willing.borrower.lend(slot, 200_000, position)
        assert willing.loans.ahead(0) is None
        willing.loans.hear()
        assert willing.loans.ahead(position - 5) == 5
        loan, view = willing.loans.take()
        assert (loan, len(view)) == ((slot, 200_000, position), 200_000)
        assert bytes(view[:20]).rstrip(b"\0") == b"%d at %d" % (slot, position)
        assert willing.lender.lent == 1
        willing.loans.give_back(loan)
        willing.hear()
        assert willing.returned.pop() == (slot, 200_000)
        assert willing.lender.lent == 0


def test_memory_cannot_be_written_by_a_caller(willing: World) -> None:
    willing.borrower.lend(1, SMALLEST, 0)
    willing.loans.hear()
    _, view = willing.loans.take()
    assert view.readonly


def test_nothing_is_lent_to_who_has_not_asked(world: World) -> None:
    assert not world.borrower.lend(1, SMALLEST, 0)
    world.loans.ask()
    assert not world.borrower.lend(1, SMALLEST, 0)
    world.hear()
    assert world.borrower.lend(1, SMALLEST, 0)
    world.loans.ask()
    with pytest.raises(BlockingIOError):
        world.hear()


def test_little_is_not_lent(willing: World) -> None:
    assert not willing.borrower.lend(1, SMALLEST - 1, 0)


def test_nothing_is_lent_before_there_is_memory(willing: World) -> None:
    willing.lender.close()
    assert not willing.borrower.lend(1, SMALLEST, 0)


def test_callers_have_a_share_of_the_slots_together(willing: World) -> None:
    """MC-14: who does not read leaves some to the qube's other calls."""
    assert limits.BULK_MAX_LENT <= MAX_LENT < SLOTS // 2 - 1
    other = Borrower(willing.ours, willing.lender)
    other.receive(WORD.pack(0))
    for slot in range(1, MAX_LENT + 1):
        assert (willing.borrower if slot % 2 else other).lend(slot, SMALLEST, slot * SMALLEST)
    assert not willing.borrower.lend(MAX_LENT + 1, SMALLEST, 0)
    assert not other.lend(MAX_LENT + 1, SMALLEST, 0)
    willing.borrower.receive(WORD.pack(1))
    assert other.lend(MAX_LENT + 1, SMALLEST, 0)


def test_nothing_is_lent_to_who_does_not_read_what_is_said(willing: World) -> None:
    willing.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while True:
        try:
            willing.ours.send(bytes(100))
        except BlockingIOError:
            break
    assert not willing.borrower.lend(1, SMALLEST, 0)
    assert willing.lender.lent == 0


@pytest.mark.parametrize("words", [(1, 1), (2,), (0xFFFFFFFF,)])
def test_return_of_what_was_not_lent_is_refused(willing: World, words: tuple[int, ...]) -> None:
    assert willing.borrower.lend(1, SMALLEST, 0)
    with pytest.raises(RemoteProtocolError, match=f"slot {words[-1]} was not lent"):
        willing.borrower.receive(b"".join(map(WORD.pack, words)))


def test_slots_of_a_call_that_is_over_are_taken_back_and_what_was_said_of_them_is_no_fault(willing: World) -> None:
    for slot in (1, 2):
        assert willing.borrower.lend(slot, SMALLEST, slot)
    assert sorted(willing.borrower.take_back()) == [1, 2]
    assert willing.lender.lent == 0
    assert not willing.borrower.lend(3, SMALLEST, 0)
    willing.borrower.receive(WORD.pack(2))
    assert (willing.returned, willing.lender.lent) == ([], 0)
    assert willing.borrower.take_back() == ()
    with pytest.raises(RemoteProtocolError, match="slot 2 was not lent"):
        willing.borrower.receive(WORD.pack(2))


@given(cuts=st.lists(st.integers(0, 12), max_size=12))
def test_what_a_caller_says_may_come_in_any_pieces(cuts: list[int]) -> None:
    world = World()
    with world.undo:
        world.borrower.receive(WORD.pack(0))
        for slot in (1, 2, 3):
            assert world.borrower.lend(slot, SMALLEST + slot, slot)
        said = b"".join(map(WORD.pack, (2, 3, 1)))
        start = 0
        for end in [*sorted(cuts), len(said)]:
            world.borrower.receive(said[start:end])
            start = end
        assert world.returned == [(slot, SMALLEST + slot) for slot in (2, 3, 1)]


@pytest.mark.parametrize(
    ("slot", "size"),
    [(1, 0), (1, bulk.SLOT_SIZE + 1), (SLOTS, 1), (0xFFFFFFFF, SMALLEST), (1, 0xFFFFFFFF)],
)
def test_loan_outside_the_memory_is_refused(willing: World, slot: int, size: int) -> None:
    assert willing.borrower.lend(2, SMALLEST, 0)
    willing.ours.send(LOAN.pack(slot, size, 1))
    willing.loans.hear()
    willing.loans.take()
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes in slot {slot}"):
        willing.loans.take()


def test_loan_without_memory_is_refused(world: World) -> None:
    world.ours.send(LOAN.pack(1, SMALLEST, 0))
    world.loans.hear()
    with pytest.raises(RemoteProtocolError):
        world.loans.take()


@pytest.mark.parametrize(
    ("size", "seals"),
    [
        (0, fcntl.F_SEAL_SHRINK),
        (limits.BULK_SIZE - 1, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        (limits.BULK_SIZE, 0),
        (limits.BULK_SIZE, fcntl.F_SEAL_GROW),
    ],
)
def test_memory_that_is_too_small_or_could_become_so_is_refused(world: World, size: int, seals: int) -> None:
    """A session that a qube has taken over must not end its callers by SIGBUS."""
    memory = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.truncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    socket.send_fds(world.ours, [LOAN.pack(1, SMALLEST, 0)], [memory])
    os.close(memory)
    with pytest.raises(RemoteProtocolError, match="sealed"):
        world.loans.hear()


def test_file_in_place_of_memory_is_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.touch()
    os.truncate(path, limits.BULK_SIZE)
    with path.open("rb") as file:
        socket.send_fds(world.ours, [LOAN.pack(1, SMALLEST, 0)], [file.fileno()])
    with pytest.raises(RemoteProtocolError, match="sealed"):
        world.loans.hear()


def test_second_memory_is_refused(willing: World) -> None:
    assert willing.borrower.lend(1, SMALLEST, 0)
    willing.loans.hear()
    socket.send_fds(willing.ours, [LOAN.pack(2, SMALLEST, 9)], [willing.lender.descriptor])
    with pytest.raises(RemoteProtocolError, match="second"):
        willing.loans.hear()


def test_more_loans_than_there_can_be_are_refused(willing: World) -> None:
    assert willing.borrower.lend(1, SMALLEST, 0)
    willing.ours.send(LOAN.pack(1, SMALLEST, 1) * MAX_LENT)
    with pytest.raises(RemoteProtocolError, match=f"{MAX_LENT + 1} slots"):
        willing.loans.hear()


def test_loan_for_a_place_that_has_gone_by_is_refused(willing: World) -> None:
    assert willing.borrower.lend(1, SMALLEST, 5)
    willing.loans.hear()
    with pytest.raises(RemoteProtocolError, match="lent for 5, at 6"):
        willing.loans.ahead(6)


def test_session_that_is_gone_is_the_end_of_it(willing: World) -> None:
    assert willing.borrower.lend(1, SMALLEST, 5)
    willing.ours.close()
    willing.loans.hear()
    assert (willing.loans.ahead(0), willing.loans.is_over) == (5, True)
    willing.loans.hear()
    willing.loans.give_back(willing.loans.take()[0])


# --- both ways of one call -------------------------------------------------------------------------------------------


def output(rng: random.Random) -> tuple[bytes, bytes, bytes]:
    """All of a call's data channel, and the two outputs in it."""
    outputs = bytearray(), bytearray()
    channel = bytearray(qrexec.encode(Hello(qrexec.VERSION)))
    while len(channel) < 6 * LARGE:
        which = rng.random() < 0.1
        data = rng.randbytes(rng.choice((1, 100, limits.QREXEC_MAX_CHUNK)))
        outputs[which].extend(data)
        channel += b"".join(qrexec.encode_data(qrexec.STDERR if which else qrexec.STDOUT, data, len(data)))
    channel += qrexec.encode(ExitCode(7))
    return bytes(channel), bytes(outputs[0]), bytes(outputs[1])


class FakeSession:
    """Gives a call its bytes by both ways, in pieces and at moments of its own."""

    def __init__(self, world: World, connection: socket.socket, rng: random.Random) -> None:
        self._world = world
        self._connection = connection
        self._rng = rng
        self._slots = list(range(1, 5))
        self.lent = 0

    async def send(self, channel: bytes) -> None:
        loop = asyncio.get_running_loop()
        rng = self._rng
        position = 0
        while position < len(channel):
            await self._hear()
            size = rng.choice((1, 9, 5000, SMALLEST, SMALLEST, bulk.SLOT_SIZE))
            piece = channel[position : position + size]
            slot = rng.choice(self._slots) if self._slots else 0
            if slot:
                self._world.write(slot, piece)
            if slot and self._world.borrower.lend(slot, len(piece), position):
                self._slots.remove(slot)
                self.lent += 1
            else:
                await loop.sock_sendall(self._connection, piece)
            position += len(piece)
        self._connection.shutdown(socket.SHUT_WR)

    async def _hear(self) -> None:
        """What the caller says; it gets a turn now and then."""
        for _ in range(self._rng.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        try:
            self._world.hear()
        except BlockingIOError:
            return
        for slot, _ in self._world.returned:
            # What is written there now is no part of what was read.
            self._world.write(slot, b"\xff" * bulk.SLOT_SIZE)
            self._slots.append(slot)
        self._world.returned.clear()


@pytest.mark.parametrize("seed", range(12))
async def test_bytes_that_come_by_two_ways_are_in_order(willing: World, seed: int) -> None:
    rng = random.Random(seed)
    channel, *outputs = output(rng)
    ours, theirs = socket.socketpair()
    collected = bytearray(), bytearray()
    with ours, theirs:
        ours.setblocking(False)
        session = FakeSession(willing, ours, rng)
        sinks = Sink(None, collected[0].extend), Sink(None, collected[1].extend)
        exchange = Exchange(theirs, willing.loans, Source(None), sinks, lambda: None)
        async with asyncio.timeout(PATIENCE_S):
            code, _ = await asyncio.gather(exchange.run(), session.send(channel))
    assert code == 7
    assert [bytes(part) for part in collected] == outputs
    assert session.lent


@pytest.mark.parametrize("seed", range(4))
async def test_reader_of_a_pipe_who_is_slow_gets_them_in_order(willing: World, seed: int) -> None:
    """MC-14: what was lent is copied or written before it is given back."""
    rng = random.Random(seed)
    channel, *outputs = output(rng)
    ours, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    with ours, theirs, ExitStack() as undo:
        ours.setblocking(False)
        session = FakeSession(willing, ours, rng)
        sinks = [Sink(writer) for _, writer in pipes]
        for reader, writer in pipes:
            os.close(writer)
            undo.callback(os.close, reader)

        def read(file: int) -> bytes:
            taken = bytearray()
            while part := os.read(pipes[file][0], rng.choice((10, 5000, 200_000))):
                taken += part
            return bytes(taken)

        async def run() -> int:
            code = await Exchange(theirs, willing.loans, Source(None), (sinks[0], sinks[1]), lambda: None).run()
            for sink in sinks:
                sink.close()
            return code

        async with asyncio.timeout(PATIENCE_S):
            code, *taken, _ = await asyncio.gather(
                run(), asyncio.to_thread(read, 0), asyncio.to_thread(read, 1), session.send(channel)
            )
    assert code == 7
    assert taken == outputs
    assert session.lent


async def test_session_that_ends_in_between_is_a_lost_channel_after_what_it_had_lent(world: World) -> None:
    ours, theirs = socket.socketpair()
    collected = bytearray()
    with ours, theirs:
        sinks = Sink(None, collected.extend), Sink(None)
        exchange = Exchange(theirs, world.loans, Source(None), sinks, lambda: None)
        head = qrexec.encode(Hello(qrexec.VERSION))
        data = b"".join(qrexec.encode_data(qrexec.STDOUT, bytes(LARGE), limits.QREXEC_MAX_CHUNK))
        ours.setblocking(False)
        running = asyncio.create_task(exchange.run())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(ours, head + data)
            while not world.borrower.lend(1, SMALLEST, len(head + data)):
                await asyncio.sleep(0.001)
                try:
                    world.hear()
                except BlockingIOError:
                    continue
            world.write(1, b"".join(qrexec.encode_data(qrexec.STDOUT, b"x" * SMALLEST, limits.QREXEC_MAX_CHUNK)))
            ours.close()
            world.ours.close()
            assert await running == qrexec.EXIT_CHANNEL_LOST
    assert len(collected) - collected.count(b"x") == LARGE
    assert 0 < collected.count(b"x") < SMALLEST


async def test_broken_loan_is_a_lost_channel(world: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange = Exchange(theirs, world.loans, Source(None), (Sink(None), Sink(None)), lambda: None)
        world.ours.send(LOAN.pack(1, SMALLEST, 0))
        async with asyncio.timeout(PATIENCE_S):
            assert await exchange.run() == qrexec.EXIT_CHANNEL_LOST


def test_session_says_less_than_a_caller_reads_at_once() -> None:
    assert 2 * MAX_LENT * LOAN.size < lending.READ_SIZE
