"""The caller's end of a data channel, for programs: what they write goes to a service, what it writes comes to them.

::

    source (stdin, or a program's output) ── STDIN ─────► channel ◄── STDOUT ── sink (stdout, or a program's input)
                                                                  ◄── STDERR ── stderr
                                                                  ◄── EXIT_CODE

A source that has proved large is given to the agent, which reads it then and makes the messages: its bytes need not
pass through here.

Nothing is buffered without bound: the source is read only when nothing waits for the channel, the channel only when
nothing waits for the sinks. poll(2), not epoll, because standard input may be a file.
"""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os
import select
import stat
import time

from insula_agent import conveyor, process, sockets
from insula_agent.pieces import MAX_PIECES, drop
from insula_agent.sink import release
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import EXIT_CHANNEL_LOST, OLDEST_VERSION, ExitCode, Hello, Stderr, Stdout
from insula_proto.qrexec_channel import CallerEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.sink import Sink
    from insula_agent.sockets import Socket
    from insula_proto.qrexec import Message

HANDSHAKE_TIMEOUT = 120.0
"""Seconds the other end has to connect and say HELLO (published)."""
READ_SIZE = 65536 - qrexec.HEADER.size
"""Bytes read of the source at once: with their header 64 KiB."""
CHANNEL_READ_SIZE = 262144
BULK_READ_SIZE = 1048576
"""Bytes of the channel taken at once: of one with much in it as much as the agent puts there, which it is woken for."""
PIPE_SIZE = 524288
"""Bytes of the pipes of the programs on both sides of us, where that is allowed."""
MOVES = 32
"""Messages moved before others get their turn."""
LARGE = 2097152
"""Bytes of the source after which it is offered to the agent."""
GIVEN, TAKEN = b"I", b"T"
"""To and from the agent (insula_agent.requests)."""
SIGUSR1, SIGCHLD = 10, 17
EXIT_BROKEN = 1
"""Published ends leave with this when the other one breaks the protocol."""


class HandshakeFailed(ConnectionError):
    """The other end does not come, or is none."""


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


class LocalProgram:
    """A program whose input and output are the channel. It may ask for one socket for both (SIGUSR1 to us)."""

    def __init__(self, pid: int, wakeup: int) -> None:
        self.pid = pid
        self.wakeup = wakeup
        """Becomes readable when a signal has come."""
        self.code: int | None = None
        self.wants_single_socket = False

    def look(self) -> None:
        """Take note of signals."""
        try:
            if SIGUSR1 in os.read(self.wakeup, 4096):
                self.wants_single_socket = True
        except BlockingIOError:
            pass
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = process.exit_code(status)

    def wait(self) -> int:
        if self.code is None:
            self.code = process.exit_code(os.waitpid(self.pid, 0)[1])
        return self.code


def catch_signals() -> int:
    """Have SIGUSR1 and SIGCHLD make a descriptor readable; return that. Call it before the program is started."""
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(into)
    for number in (SIGUSR1, SIGCHLD):
        _signal.signal(number, lambda number, frame: None)
    return out


def _wait(interests: dict[int, int], timeout: int | None) -> dict[int, int]:
    """poll(2); errors and hang-ups are reported without being asked for."""
    poll = select.poll()
    for fd, events in interests.items():
        poll.register(fd, events)
    return dict(poll.poll(timeout))


class Caller:
    """One call. The channel is a connected socket, or two pipes; ``source`` and the sinks are closed as their streams
    end."""

    def __init__(
        self,
        channel: tuple[int, int],
        source: int,
        sink: Sink,
        errors: Sink,
        prefix: bytes = b"",
        program: LocalProgram | None = None,
        agent: Socket | None = None,
    ) -> None:
        """``channel``: where it is read and where it is written, which may be the same descriptor. ``agent``: the
        connection over which the service was asked for, if the agent may take the source."""
        for fd in channel:
            os.set_blocking(fd, False)
        self._input, self._output = channel
        self._end = CallerEnd(oldest=OLDEST_VERSION)
        self._source = source
        self._may_splice = conveyor.IS_POSSIBLE and _is_pipe(source) and _is_pipe(self._output)
        """Pages of the source go into the channel. Into a socket they would go one by one, each waking its reader."""
        for pipe in (source, sink.pipe):
            if pipe >= 0 and _is_pipe(pipe):
                # A shell's pipes hold 64 KiB: each time one is full or empty its program takes turns with us.
                conveyor.enlarge(pipe, PIPE_SIZE)
        self._agent = agent if self._may_splice and program is None else None
        self._is_offered = False
        """The agent has not answered yet whether it takes the source."""
        self._said = 0
        """Bytes of the source that went through here."""
        self._sink = sink
        self._errors = errors
        self._prefix = prefix
        self._program = program
        self._out: list[bytes | memoryview] = [self._end.hello()]
        self._splicing = 0
        """Bytes of the source that belong behind a header already sent."""
        self._moves_output = conveyor.IS_POSSIBLE and _is_pipe(self._input)
        """Pages of the channel may go into the sink, where that is a pipe too."""
        self._is_sink_full = False
        """It took no more pages."""
        self._buffer = memoryview(bytearray(CHANNEL_READ_SIZE))
        """Larger when there has been much."""
        self._is_lost = False
        """No more comes over the channel."""
        self._deadline = time.monotonic() + HANDSHAKE_TIMEOUT

    def run(self) -> int:
        """Go on until all is over; the exit status for the one who called. :raise HandshakeFailed:"""
        try:
            while not self._is_over:
                self._turn()
        except RemoteProtocolError as error:
            if self._end.version is None:
                raise HandshakeFailed(str(error)) from error
            self._lose()
            self._finish()
            return EXIT_BROKEN
        return self._finish()

    def _finish(self) -> int:
        os.close(self._input)
        if self._output != self._input:
            os.close(self._output)
        local = self._program.wait() if self._program is not None else 0
        code = self._end.exit_code
        return EXIT_CHANNEL_LOST if code is None else code & 0xFF or local

    @property
    def _is_over(self) -> bool:
        if self._sink.is_busy or self._errors.is_busy:
            return False
        if self._is_lost:
            return True
        return self._end.exit_code is not None and not self._out and not self._splicing

    # --- one turn ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        interests: dict[int, int] = {}

        def want(fd: int, events: int) -> None:
            interests[fd] = interests.get(fd, 0) | events

        is_idle = not self._out and not self._splicing
        if not self._is_lost:
            # Not at all, rather than without interest, while there is none: that the other end has gone is known then.
            if not is_idle:
                want(self._output, select.POLLOUT)
            if self._is_sink_full:
                want(self._sink.fd, select.POLLOUT)
            elif not self._sink.is_busy and not self._errors.is_busy and self._end.exit_code is None:
                want(self._input, select.POLLIN)
        if self._is_offered and self._agent is not None:
            want(self._agent.fileno(), select.POLLIN)
        elif self._source >= 0 and is_idle and self._end.version is not None:
            want(self._source, select.POLLIN)
        for sink in (self._sink, self._errors):
            if sink.is_open:
                # Without interest too: a reader that goes away is noticed.
                want(sink.fd, select.POLLOUT if sink.is_busy else 0)
        if self._program is not None:
            want(self._program.wakeup, select.POLLIN)
        self._deal_with(_wait(interests, self._timeout()))

    def _deal_with(self, found: dict[int, int]) -> None:
        if not found and self._end.version is None:
            raise HandshakeFailed("the other end does not say HELLO")
        if self._program is not None and found.get(self._program.wakeup):
            self._signalled()
        for sink in (self._sink, self._errors):
            self._look_at(sink, found.get(sink.fd, 0))
        if self._is_offered and self._agent is not None and found.get(self._agent.fileno()):
            self._answered(self._agent)
        if (self._out or self._splicing) and found.get(self._output):
            self._send()
        if self._is_sink_full and found.get(self._sink.fd):
            self._is_sink_full = False
            self._receive()
        elif not self._is_lost and found.get(self._input, 0) & ~select.POLLOUT:
            self._receive()
        if found.get(self._source, 0) & ~select.POLLOUT:
            self._read_source()

    def _timeout(self) -> int | None:
        if self._end.version is not None:
            return None
        return max(0, int(1000 * (self._deadline - time.monotonic())))

    def _look_at(self, sink: Sink, events: int) -> None:
        if not sink.is_open:
            return
        if events & (select.POLLERR | select.POLLNVAL) or (events & select.POLLHUP and sink.fd != self._source):
            sink.close()
        elif events & select.POLLOUT and sink.is_busy:
            sink.writable()

    # --- channel -------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._sink.is_busy or self._errors.is_busy:
            # The end of the channel is behind what is still in it.
            return
        if self._moves_output and self._sink.pipe >= 0 and self._end.version is not None:
            self._move_output()
        else:
            data = self._read_channel()
            output: list[bytes | memoryview] = []
            taken = self._end.take_stdout(data, output)  # type: ignore[arg-type]
            self._sink.write(*output)
            self._take_all(data[taken:])

    def _read_channel(self, limit: int = 0) -> memoryview:
        """Read once, at most ``limit`` bytes if that is not 0; nothing: there is nothing now.

        A view, not a copy: the buffer is not used again before the sinks have taken what is in it.
        """
        try:
            size = os.readv(self._input, [self._buffer[:limit]]) if limit else self._read_much()
        except BlockingIOError:
            return self._buffer[:0]
        except OSError:
            size = 0
        if not size:
            self._lose()
        return self._buffer[:size]

    def _read_much(self) -> int:
        """:raise OSError:"""
        if not self._moves_output:
            return os.readv(self._input, [self._buffer])
        available = conveyor.waiting(self._input)
        if available < conveyor.SMALLEST_WRITTEN:
            return os.readv(self._input, [self._buffer])
        if available > len(self._buffer):
            self._buffer = memoryview(bytearray(BULK_READ_SIZE))
        size = min(available, len(self._buffer))
        return conveyor.drawer().read(self._input, [self._buffer[:size]], size)

    def _move_output(self) -> None:
        """Read headers only, and have pages of output moved on."""
        for _ in range(MOVES):
            if self._end.output_left >= conveyor.SMALLEST:
                if not self._move_pages():
                    return
            else:
                data = self._read_channel(min(self._end.missing, CHANNEL_READ_SIZE))
                if not data:
                    return
                self._take_all(data)
            if self._sink.is_busy or self._errors.is_busy or self._sink.pipe < 0:
                return

    def _move_pages(self) -> bool:
        """Move once; whether it is worth to go on at once."""
        try:
            count = os.splice(self._input, self._sink.pipe, self._end.output_left, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._is_sink_full = conveyor.waiting(self._input) > 0
            return False
        except OSError:
            # Nobody reads our output any more; what comes is swallowed from here on.
            self._sink.close()
            return False
        if not count:
            self._lose()
            return False
        self._end.skip_output(count)
        return True

    def _take_all(self, untrusted_data: memoryview) -> None:
        for message in self._end.receive(untrusted_data):  # type: ignore[arg-type] # a view reads like bytes
            self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Stdout):
            if message.data:
                self._sink.write(message.data)
            else:
                self._sink.end()
        elif isinstance(message, Stderr):
            self._errors.write(message.data)
        elif isinstance(message, ExitCode):
            self._exited()
        elif isinstance(message, Hello):
            self._out.extend(self._end.stdin(self._prefix))
            if self._program is not None:
                self._signalled()
            self._send()

    def _exited(self) -> None:
        """Nobody reads what comes from the source any more; what the sinks have is still written."""
        if self._source >= 0:
            self._close_source()
        self._sink.end()
        self._send()

    def _lose(self) -> None:
        """The channel ended too early: no exit code comes."""
        self._is_lost = True
        self._out.clear()
        self._splicing = 0
        self._drop_source()
        self._sink.end()

    def _send(self) -> None:
        try:
            while self._splicing:
                moved = os.splice(self._source, self._output, self._splicing, flags=os.SPLICE_F_NONBLOCK)
                self._splicing -= moved
                if not moved:
                    self._fill_up()
            while self._out:
                drop(self._out, os.writev(self._output, self._out[:MAX_PIECES]))
        except BlockingIOError:
            if self._splicing and not conveyor.waiting(self._source):
                self._fill_up()
        except OSError:
            # The other end has gone; what it said before, maybe the exit code, can still be read.
            self._out.clear()
            self._splicing = 0
            self._drop_source()

    def _fill_up(self) -> None:
        """Somebody else read of our input what had been announced: the message is completed."""
        self._out.insert(0, bytes(self._splicing))
        self._splicing = 0

    # --- source --------------------------------------------------------------------------------------------------

    def _read_source(self) -> None:
        if self._source < 0 or self._out or self._splicing:
            return
        if self._agent is not None and self._said >= LARGE and self._end.max_chunk == limits.QREXEC_MAX_CHUNK:
            self._offer(self._agent)
            return
        if self._may_splice:
            size = min(conveyor.waiting(self._source), self._end.max_chunk, conveyor.FRAME_SIZE)
            if size >= conveyor.SMALLEST:
                self._said += size
                self._out.append(self._end.stdin_header(size))
                self._send()
                if not self._out:
                    self._splicing = size
                    self._send()
                    return
                self._out.append(os.read(self._source, size).ljust(size, b"\0"))
                return
        try:
            data = os.read(self._source, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._out.extend(self._end.stdin(data))
        elif not self._is_continued():
            self._close_source()
        self._send()

    def _offer(self, agent: Socket) -> None:
        """Have the agent read the source from here on; all that was read of it is in the channel."""
        try:
            sockets.send_with_descriptors(agent, GIVEN, (self._source,))
            self._is_offered = True
        except OSError:
            # One that does not take any.
            self._agent = None

    def _answered(self, agent: Socket) -> None:
        try:
            is_taken = agent.recv(1) == TAKEN
        except OSError:
            is_taken = False
        self._agent = None
        self._is_offered = False
        if is_taken:
            # Its end is the agent's to say.
            self._drop_source()

    def _is_continued(self) -> bool:
        """Whether input that has ended goes on over another socket: the signal may have come with its end."""
        ended = self._source
        if self._program is not None:
            self._signalled()
        return self._source != ended

    def _close_source(self) -> None:
        """Say that no more input comes."""
        self._drop_source()
        self._out.append(self._end.stdin_end())

    def _drop_source(self) -> None:
        if self._source < 0:
            return
        source, self._source = self._source, -1
        if stat.S_ISSOCK(os.fstat(source).st_mode):
            sockets.shut(source, sockets.SHUT_RD)
        else:
            release(source)

    # --- the program ---------------------------------------------------------------------------------------------

    def _signalled(self) -> None:
        assert self._program is not None
        self._program.look()
        # Before HELLO nothing can be sent: the signal is remembered until then.
        if (
            self._program.wants_single_socket
            and self._end.version is not None
            and self._source not in (-1, self._sink.fd)
        ):
            self._use_single_socket()
        if self._program.code is not None:
            # It reads nothing any more.
            self._sink.close()

    def _use_single_socket(self) -> None:
        """From now on the program's output comes over the socket that is its input; what it wrote before goes first."""
        try:
            while data := os.read(self._source, READ_SIZE):
                self._out.extend(self._end.stdin(data))
        except BlockingIOError:
            pass
        self._drop_source()
        self._source = self._sink.fd
        self._may_splice = False
