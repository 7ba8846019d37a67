"""Both ends of a data channel joined by a socket pair, in one process each a thread of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.qrexec.descriptors import Local, Modes, Outlet, drop
from insula.qrexec.relay import CallerRelay, ServiceRelay
from insula.qrexec.sockets import Deadline, handshake
from insula_proto import qrexec
from insula_proto.qrexec import OLDEST_VERSION
from insula_proto.qrexec_channel import CallerEnd, ServiceEnd


class Thread(threading.Thread):
    """Keeps what its function returned."""

    def __init__(self, work: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.result: int | None = None
        self.start()

    def run(self) -> None:
        self.result = self._work()

    def done(self) -> int:
        self.join(120)
        assert self.result is not None, "it still runs"
        return self.result


class Call:
    """A caller with two pipes, and a service behind one socket."""

    def __init__(self, version: int = 4, **options: bool) -> None:
        here, there = socket.socketpair()
        self.stdin, into = socket.socketpair()
        out, self.stdout = socket.socketpair()
        errors, self.stderr = socket.socketpair()
        self.service, behind = socket.socketpair()
        for end in (self.stdin, self.stdout, self.stderr, self.service):
            end.settimeout(120)

        def call() -> int:
            end = CallerEnd(oldest=OLDEST_VERSION)
            early = handshake(here, end.hello(), end.receive, Deadline(20))
            relay = CallerRelay(here, end, Local.owned(into), Outlet(Local.owned(out)), Outlet(Local.owned(errors)))
            return relay.run(early)

        def serve() -> int:
            end = ServiceEnd(own_version=version, oldest=OLDEST_VERSION)
            early = handshake(there, end.hello(), end.receive, Deadline(20))
            reading, writing = Local.halves(behind)
            return ServiceRelay(there, end, reading, Outlet(writing), **options).run(early)

        self.caller, self.server = Thread(call), Thread(serve)

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr, self.service):
            end.close()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def feed(connection: socket.socket, data: bytes) -> threading.Thread:
    def work() -> None:
        with suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 3_000_000])
def test_bytes_arrive_both_ways_whole_and_in_order(size: int, version: int) -> None:
    call = Call(version)
    there, back = os.urandom(size), os.urandom(size)
    threads = [feed(call.stdin, there), feed(call.service, back)]
    received: list[bytes] = []
    threads.append(threading.Thread(target=lambda: received.append(read_all(call.service))))
    threads[-1].start()
    assert read_all(call.stdout) == back
    for thread in threads:
        thread.join(120)
    assert received == [there]
    call.service.close()
    assert call.caller.done() == call.server.done() == 0
    call.close()


def test_end_of_output_is_told_while_input_goes_on() -> None:
    call = Call()
    call.service.shutdown(socket.SHUT_WR)
    assert read_all(call.stdout) == b""
    call.stdin.sendall(b"late")
    assert call.service.recv(16) == b"late"
    call.service.shutdown(socket.SHUT_RD)
    assert call.caller.done() == 0
    call.close()


def test_end_of_client_ends_the_call_where_the_service_says_so() -> None:
    call = Call(ends_with_client=True)
    call.stdin.shutdown(socket.SHUT_WR)
    assert call.caller.done() == 0
    call.close()


def test_end_of_service_ends_the_call_where_it_says_so() -> None:
    call = Call(ends_with_service=True)
    call.service.shutdown(socket.SHUT_WR)
    assert call.caller.done() == 0
    call.close()


def test_service_that_is_gone_does_not_hold_up_the_caller() -> None:
    call = Call()
    call.service.close()
    feed(call.stdin, bytes(1 << 22))
    assert call.caller.done() == 0
    call.close()


def test_reader_that_is_gone_does_not_end_the_service() -> None:
    call = Call()
    call.stdout.close()
    call.service.sendall(bytes(1 << 20))
    call.stdin.sendall(b"still")
    assert call.service.recv(16) == b"still"
    call.service.close()
    assert call.caller.done() == 0
    call.close()


def test_service_that_does_not_read_is_waited_for_with_little_kept() -> None:
    """MC-14."""
    call = Call()
    call.stdin.settimeout(0.5)
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 << 20:
            sent += call.stdin.send(bytes(65536))
    assert sent < 4 << 20
    call.service.close()
    assert call.caller.done() == 0
    call.close()


def hostile(messages: bytes, version: int = 4) -> int:
    """Exit code of a caller whose service says this, and closes."""
    here, there = socket.socketpair()
    with there:
        there.sendall(qrexec.encode(qrexec.Hello(version)) + messages)
        there.shutdown(socket.SHUT_WR)
        end = CallerEnd(oldest=OLDEST_VERSION)
        early = handshake(here, end.hello(), end.receive, Deadline(20))
        into, out, errors = (os.open(os.devnull, os.O_RDWR) for _ in range(3))
        locals_ = [Local(fd, lambda fd=fd: os.close(fd)) for fd in (into, out, errors)]  # type: ignore[misc]
        return CallerRelay(here, end, locals_[0], Outlet(locals_[1]), Outlet(locals_[2])).run(early)


@given(st.binary(max_size=200))
def test_service_that_says_anything_ends_the_call(untrusted_data: bytes) -> None:
    """MC-11, MC-12, MC-21."""
    assert isinstance(hostile(untrusted_data), int)


@pytest.mark.parametrize("code", [0, 1, 255, -1, 2**31 - 1])
def test_exit_code_with_data_before_and_nothing_behind(code: int) -> None:
    assert hostile(qrexec.encode(qrexec.Stdout(b"x")) + qrexec.encode(qrexec.ExitCode(code))) == code
    assert hostile(qrexec.encode(qrexec.ExitCode(code)) + qrexec.encode(qrexec.Stdout(b"x"))) in (code, 255)


@given(st.lists(st.binary(max_size=5), max_size=8), st.integers(0, 40))
def test_drop_leaves_the_rest(parts: list[bytes], count: int) -> None:
    whole = b"".join(parts)
    assert b"".join(drop(list(parts), count)) == whole[count:]


def test_modes_are_given_back() -> None:
    before = [os.get_blocking(fd) for fd in (0, 1, 2)]
    with Modes():
        assert not any(os.get_blocking(fd) for fd in (0, 1, 2))
    assert [os.get_blocking(fd) for fd in (0, 1, 2)] == before
