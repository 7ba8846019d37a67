"""One running call: what serves it, its data channel, and the pumps between them.

What serves it is a process with pipes and a socket (:mod:`insula_agent.children`), or a connection to something that
listens (:mod:`insula_agent.connections`). Nothing is buffered without bound: what came for its input is granted again
to the caller only after it was written, and output is read only while nothing waits to be sent. So a process that does
not read, or a caller that does not, stops its own stream and no other.

::

    waiting for HELLO ──► running ──► ended, output at its end ──► EXIT_CODE, FIN, CONNECTION_TERMINATED
          │                  │ stream lost: SIGHUP to the group, SIGKILL 2 s later, reaped, CONNECTION_TERMINATED
          └── silent for 120 s: reset
"""

from __future__ import annotations

import os

from insula_agent import conveyor, process, sockets
from insula_agent.children import Child
from insula_agent.connections import Connector
from insula_agent.log import log
from insula_agent.loop import HANGUP, READ, WRITE, Loop, Timer
from insula_agent.pieces import drop
from insula_agent.plans import SocketPlan, StartFailed
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams, StreamWriter
from insula_agent.syslog import SyslogCopy
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, OLDEST_VERSION, Hello, Stdin
from insula_proto.qrexec_channel import ServiceEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent.plans import Plan

HANDSHAKE_TIMEOUT = 120.0
"""Seconds a caller has to be there and say HELLO (published: agents wait this long for the data channel)."""
KILL_DELAY = 2.0
"""Seconds between SIGHUP and SIGKILL for a command whose caller has gone."""
READ_SIZE = limits.MUX_MAX_DATA - qrexec.HEADER.size
"""Bytes read from a process at once: with their header one frame."""


class Call(StreamHandler):
    """``make_plan`` decides what to do when the caller is there; ``on_end`` is told when all is over; ``look`` has
    signals of processes heard that were sent before."""

    def __init__(
        self,
        loop: Loop,
        link: Streams,
        make_plan: Callable[[], Plan],
        on_end: Callable[[], None],
        look: Callable[[], None],
        *,
        is_detached: bool,
    ) -> None:
        self._loop = loop
        self._link = link
        self._make_plan = make_plan
        self._on_end = on_end
        self._look = look
        self._is_detached = is_detached
        self._channel = ServiceEnd(oldest=OLDEST_VERSION)
        self._stream = 0
        self._writer: StreamWriter | None = None
        self._child: Child | None = None
        self._connector: Connector | None = None
        self._socket_plan: SocketPlan | None = None
        self._log_copy: SyslogCopy | None = None
        self._stdin = -1
        self._socket = -1
        """``_stdin`` if it is a socket: kept when our direction of it has ended, for the other may be wanted still."""
        self._watched_socket = -1
        """A copy of it on which output is expected."""
        self._is_single = False
        """It carries output too."""
        self._stdin_queue: list[bytes | memoryview] = []
        self._stdin_ended = False
        self._unconsumed = 0
        """Bytes of the stream that belong to what is queued for stdin."""
        self._outputs: dict[int, bool] = {}
        """Descriptors of output not at their end; True for stdout."""
        self._is_finished = False
        self._timer: Timer | None = None

    def connect(self, stream: int) -> None:
        """Begin on the data stream of this call."""
        self._stream = stream
        self._writer = StreamWriter(self._link, stream)
        self._writer.write(self._channel.hello())
        self._timer = self._loop.after(HANDSHAKE_TIMEOUT, self._give_up)

    # --- from the caller -----------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        self._unconsumed += len(data)
        try:
            taken = self._channel.take_stdin(data, self._stdin_queue)
            if taken == len(data):
                return
            messages = self._channel.receive(data[taken:])
        except RemoteProtocolError as error:
            log(f"data channel: {error}")
            self._link.reset(stream, RESET_FAILED)
            self.closed(stream, RESET_FAILED)
            return
        for message in messages:
            if isinstance(message, Stdin):
                if message.data:
                    self._stdin_queue.append(message.data)
                else:
                    self._stdin_ended = True
            elif isinstance(message, Hello):
                self._start()

    def data_end(self, stream: int) -> None:
        del stream
        self._pump_stdin()
        # What could not be written outlives the buffer it is in.
        self._stdin_queue = [rest if isinstance(rest, bytes) else bytes(rest) for rest in self._stdin_queue]

    def fin(self, stream: int) -> None:
        """The caller closed its end: normal after the exit code, else it has gone (a vchan has no half-close)."""
        if not self._is_finished:
            self._link.reset(stream)
            self.closed(stream, RESET_FAILED)

    def closed(self, stream: int, code: int) -> None:
        del stream, code
        self._writer = None
        self._stdin_queue.clear()
        self._cancel_timer()
        self._release()
        if self._child is not None and not self._is_detached:
            self._child.signal(process.SIGHUP)
            self._timer = self._loop.after(KILL_DELAY, self.kill)
        else:
            self._end()

    def writable(self, stream: int) -> None:
        del stream
        if self._writer is not None:
            self._writer.flush()
            if self._convey_more():
                return
        self._advance()

    def kill(self) -> None:
        """End the command and its group now; waits for it, which is short after SIGKILL."""
        if self._child is not None:
            self._child.signal(process.SIGKILL)
            self._reap()
            self._end()

    def _give_up(self) -> None:
        log("data channel: the caller does not say HELLO")
        self._link.reset(self._stream, RESET_FAILED)
        self.closed(self._stream, RESET_FAILED)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- start ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._cancel_timer()
        try:
            plan = self._make_plan()
            if isinstance(plan, SocketPlan):
                self._socket_plan = plan
                self._connector = Connector(self._loop, plan.target, self._connected, self._not_connected)
                self._connector.start()
                return
            self._spawn(plan)
        except StartFailed as failure:
            log(str(failure))
            self._finish(failure.code)
        except OSError as error:
            log(f"no process: {error}")
            self._finish(EXIT_PROBLEM)
        else:
            if self._is_detached:
                self._finish(0)

    def _spawn(self, plan: process.Plan) -> None:
        """:raise OSError:"""
        self._child = child = Child(self._loop, plan, self._exited, is_detached=self._is_detached)
        if self._is_detached:
            return
        self._stdin = child.stdin
        if not plan.has_pipe:
            self._socket = child.stdin
        self._outputs = {child.stdout: True, child.stderr: False}
        if plan.log_tag:
            self._log_copy = SyslogCopy(plan.log_tag)
        self._watch_outputs()

    def _connected(self, fd: int) -> None:
        """The service's socket is there: it is told who calls, and is output and input at once."""
        assert self._socket_plan is not None
        self._connector = None
        self._stdin = self._socket = fd
        if self._socket_plan.first:
            self._stdin_queue.insert(0, self._socket_plan.first)
        if self._is_detached:
            self._pump_stdin()
            self._finish(0)
            return
        self._outputs = {os.dup(fd): True}
        assert self._writer is not None
        self._writer.write(self._channel.stderr_end())
        self._pump_stdin()
        self._advance()

    def _not_connected(self, reason: str) -> None:
        self._connector = None
        log(f"no connection to a service: {reason}")
        self._finish(EXIT_PROBLEM)

    # --- the process ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the process that serves this call; 0: none."""
        return 0 if self._child is None else self._child.pid

    @property
    def _has_two_descriptors(self) -> bool:
        if self._socket < 0 or self._socket_plan is not None or self._is_finished or self._writer is None:
            return False
        return not self._is_single and any(self._outputs.values())

    def expect_single_socket(self) -> None:
        """The process may have asked for that, unheard: output on the socket of its input will tell."""
        if self._has_two_descriptors and self._watched_socket < 0:
            self._watched_socket = os.dup(self._socket)
            self._loop.watch(self._watched_socket, READ, self._spoken)

    def _spoken(self, events: int) -> None:
        del events
        self._stop_expecting()
        # Its end makes it readable too.
        if conveyor.waiting(self._socket):
            self.use_single_socket()

    def _stop_expecting(self) -> None:
        if self._watched_socket >= 0:
            self._loop.forget(self._watched_socket)
            os.close(self._watched_socket)
            self._watched_socket = -1

    def _is_continued(self) -> bool:
        """Whether output that has ended goes on over the socket of the input: the signal may still be on its way."""
        if self._has_two_descriptors:
            self._look()
            if not self._is_single and self._watched_socket >= 0:
                self._spoken(READ)
            return self._is_single
        return False

    def use_single_socket(self) -> None:
        """The process wants the socket of its input to carry its output too (qrexec §3, "Single-socket mode")."""
        if not self._has_two_descriptors:
            return
        self._is_single = True
        self._stop_expecting()
        for fd in [fd for fd in self._outputs if self._outputs[fd]]:
            self._drain(fd)
            self._close_output(fd)
        self._outputs[os.dup(self._socket)] = True
        self._watch_outputs()

    def _drain(self, fd: int) -> None:
        """What was written before goes first: as much as the pipe holds."""
        assert self._writer is not None
        try:
            while data := os.read(fd, min(READ_SIZE, self._channel.max_chunk)):
                self._writer.write(self._channel.stdout_header(len(data)), data)
        except BlockingIOError:
            return

    def _exited(self) -> None:
        if self._is_detached:
            self._reap()
        else:
            # Children of it that still hold its input see that no more comes (published).
            self._close_stdin()
            self._pump_stdin()
            # With the caller gone this does nothing: others of the group have until the timer to end by themselves.
            self._advance()

    def _reap(self) -> int:
        assert self._child is not None
        child, self._child = self._child, None
        return child.reap()

    # --- stdin ---------------------------------------------------------------------------------------------------

    def _pump_stdin(self, events: int = 0) -> None:
        del events
        if self._connector is not None:
            return
        try:
            if self._stdin >= 0 and self._stdin_queue:
                drop(self._stdin_queue, conveyor.write(self._stdin, self._stdin_queue))
        except BlockingIOError:
            pass
        except OSError:
            # The process closed its stdin: not an error, the rest is dropped (qrexec §3).
            self._close_stdin()
        if self._stdin < 0:
            self._stdin_queue.clear()
        if self._stdin_queue:
            self._loop.watch(self._stdin, WRITE, self._pump_stdin)
            return
        self._grant()
        if self._stdin >= 0:
            self._loop.forget(self._stdin)
            if self._stdin_ended:
                self._close_stdin()
            elif self._socket_plan is not None:
                # Nobody writes to it now; that it is closed altogether shall be noticed.
                self._loop.watch(self._stdin, 0, self._socket_gone)
        if self._socket_plan is not None and self._stdin < 0:
            self._socket_said(is_client=self._stdin_ended)

    def _socket_gone(self, events: int) -> None:
        if events & HANGUP:
            self._close_stdin()
            self._advance()

    def _grant(self) -> None:
        """What was taken off the stream so far is dealt with, once."""
        count, self._unconsumed = self._unconsumed, 0
        self._link.consumed(self._stream, count)

    def _close_stdin(self) -> None:
        if self._stdin < 0:
            return
        fd, self._stdin = self._stdin, -1
        self._loop.forget(fd)
        if fd == self._socket:
            sockets.shut(fd, sockets.SHUT_WR)
        else:
            os.close(fd)

    # --- stdout, stderr ------------------------------------------------------------------------------------------

    def _watch_outputs(self) -> None:
        """Listen to the process only while everything it said has been sent."""
        may_read = self._writer is not None and self._writer.is_empty and self._link.has_room(self._stream)
        if not may_read and self._outputs:
            self._link.notify_writable(self._stream)
        for fd in self._outputs:
            if may_read:
                self._loop.watch(fd, READ, self._read_stdout if self._outputs[fd] else self._read_stderr)
            else:
                self._loop.forget(fd)

    def _read_stdout(self, events: int) -> None:
        del events
        found = [fd for fd, is_stdout in self._outputs.items() if is_stdout]
        is_much = bool(found) and conveyor.waiting(found[0]) >= conveyor.SMALLEST_SHARED
        self._read_output(is_stdout=not (is_much and self._has_error_output))

    def _read_stderr(self, events: int) -> None:
        del events
        self._read_output(is_stdout=False)

    def _read_output(self, *, is_stdout: bool) -> None:
        found = [fd for fd in self._outputs if self._outputs[fd] == is_stdout]
        if not found or self._writer is None or not self._writer.is_empty:
            return
        fd = found[0]
        header = self._channel.stdout_header if is_stdout else self._channel.stderr_header
        is_copied = not is_stdout and self._log_copy is not None
        if not is_copied and self._is_bulk_allowed and self._link.convey(self._stream, fd, header):
            self._advance()
            return
        try:
            data = os.read(fd, min(READ_SIZE, self._channel.max_chunk))
        except BlockingIOError:
            return
        except OSError:
            # A connection the service broke off.
            data = b""
        if data:
            if not is_stdout and self._log_copy is not None:
                self._log_copy.write(data)
            self._writer.write(header(len(data)), data)
        elif not is_stdout or not self._is_continued():
            self._close_output(fd)
            self._writer.write(self._channel.stdout_end() if is_stdout else self._channel.stderr_end())
            if self._socket_plan is not None:
                self._socket_said(is_client=False)
        self._advance()

    def _convey_more(self) -> bool:
        """Much of stdout may wait already: then the loop need not be asked whether anything does. Whether that leaves
        nothing to do until there is room again."""
        assert self._writer is not None
        if self._writer.is_empty and self._is_bulk_allowed and not self._has_error_output:
            for fd, is_stdout in self._outputs.items():
                if is_stdout and self._link.convey(self._stream, fd, self._channel.stdout_header):
                    if self._link.has_room(self._stream):
                        return False
                    self._link.notify_writable(self._stream)
                    return True
        return False

    @property
    def _has_error_output(self) -> bool:
        """Then that has its turn: while much is under way nothing else can be sent."""
        return any(conveyor.waiting(fd) for fd, is_stdout in self._outputs.items() if not is_stdout)

    @property
    def _is_bulk_allowed(self) -> bool:
        """Conveyed messages have sizes of the present version."""
        return self._channel.max_chunk == limits.QREXEC_MAX_CHUNK

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._loop.forget(fd)
        os.close(fd)

    # --- the end -------------------------------------------------------------------------------------------------

    def _socket_said(self, *, is_client: bool) -> None:
        """One direction to or from a service's socket has ended: some calls end with it."""
        plan = self._socket_plan
        assert plan is not None
        if (plan.exit_on_client_eof if is_client else plan.exit_on_service_eof) and not self._is_finished:
            self._finish(0)
        elif not self._is_detached:
            self._advance()

    @property
    def _is_served(self) -> bool:
        """Whether what serves the call has nothing more to do."""
        if self._connector is not None or self._outputs:
            return False
        if self._socket_plan is not None:
            return self._stdin < 0
        return self._child is not None and self._child.has_exited

    def _advance(self) -> None:
        """Go on with whatever became possible: more output, the exit code, the end of the stream."""
        if self._writer is None:
            return
        if not self._is_finished and self._is_served:
            self._finish(0 if self._child is None else self._reap())
        elif self._is_finished and self._writer.is_empty:
            self._close_stream()
        else:
            self._watch_outputs()

    def _finish(self, code: int) -> None:
        """Send the last messages; the stream is closed once they have gone."""
        self._is_finished = True
        self._stdin_queue.clear()
        self._release()
        if self._writer is not None:
            end = self._channel.finish_detached(code) if self._is_detached else self._channel.finish(code)
            self._writer.write(end)
            self._advance()

    def _release(self) -> None:
        """Close all that leads to what serves the call."""
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        self._close_stdin()
        self._stop_expecting()
        for fd in tuple(self._outputs):
            self._close_output(fd)
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1
        if self._log_copy is not None:
            self._log_copy.close()
            self._log_copy = None

    def _close_stream(self) -> None:
        self._writer = None
        self._link.finish(self._stream)
        # The caller may still send stdin nobody reads; closing our direction alone would leave it waiting for credit.
        self._grant()
        self._end()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, _nothing
        on_end()


def _nothing() -> None:
    """Called in place of ``on_end`` after it was."""
