"""One running command: its process, its data channel, and the pumps between them.

Nothing is buffered without bound: what came for the process's stdin is granted again to the caller only after it was
written, and output is read from the process only while nothing waits to be sent. So a process that does not read, or
a caller that does not, stops its own stream and no other.

::

    waiting for HELLO ──► running ──► ended, output at its end ──► EXIT_CODE, FIN, CONNECTION_TERMINATED
          │                  │ stream lost: SIGHUP to the group, SIGKILL 2 s later, reaped, CONNECTION_TERMINATED
          └── silent for 120 s: reset
"""

from __future__ import annotations

import os

from insula_agent import process
from insula_agent.conveyor import enlarge
from insula_agent.link import Link, StreamHandler, StreamWriter
from insula_agent.log import log
from insula_agent.loop import READ, WRITE, Loop, Timer
from insula_agent.pieces import MAX_PIECES, drop
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.mux import RESET_FAILED
from insula_proto.qrexec import EXIT_PROBLEM, Hello, Stdin
from insula_proto.qrexec_channel import ServiceEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HANDSHAKE_TIMEOUT = 120.0
"""Seconds a caller has to say HELLO (published: agents wait this long for the data channel)."""
KILL_DELAY = 2.0
"""Seconds between SIGHUP and SIGKILL for a command whose caller has gone."""
READ_SIZE = limits.MUX_MAX_DATA - qrexec.HEADER.size
"""Bytes read from a process at once: with their header one frame."""
PIPE_SIZE = 524288
"""Bytes of the pipes to and from a process: fewer changes between it and us than with the kernel's 64 KiB."""


class StartFailed(Exception):
    """The command cannot be started; ``code`` is what the caller gets as exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Call(StreamHandler):
    """``make_plan`` decides what to execute when the caller is there; ``on_end`` is told when all is over."""

    def __init__(
        self,
        loop: Loop,
        link: Link,
        make_plan: Callable[[], process.Plan],
        on_end: Callable[[], None],
        *,
        is_detached: bool,
    ) -> None:
        self._loop = loop
        self._link = link
        self._make_plan = make_plan
        self._on_end = on_end
        self._is_detached = is_detached
        self._channel = ServiceEnd()
        self._stream = 0
        self._writer: StreamWriter | None = None
        self._pid = 0
        self._pidfd = -1
        self._has_exited = False
        """The process has ended. It is reaped only when nothing can be sent to its group any more: a zombie's number
        cannot belong to anybody else."""
        self._stdin = -1
        self._stdin_queue: list[bytes | memoryview] = []
        self._stdin_ended = False
        self._unconsumed = 0
        """Bytes of the stream that belong to what is queued for stdin."""
        self._outputs: dict[int, bool] = {}
        """Descriptors of the process's output not at their end; True for stdout."""
        self._is_finished = False
        self._timer: Timer | None = None

    def connect(self, stream: int) -> None:
        """Begin on the data stream the host has opened for this call."""
        self._stream = stream
        self._writer = StreamWriter(self._link, stream)
        self._writer.write(self._channel.hello())
        self._timer = self._loop.after(HANDSHAKE_TIMEOUT, self._give_up)

    # --- from the caller -----------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        self._unconsumed += len(data)
        try:
            messages = self._channel.receive(data)
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
        self._close_stdin()
        self._close_outputs()
        if self._pidfd >= 0 and not self._is_detached:
            process.signal_group(self._pid, process.SIGHUP)
            self._timer = self._loop.after(KILL_DELAY, self.kill)
        else:
            self._end()

    def writable(self, stream: int) -> None:
        del stream
        if self._writer is not None:
            self._writer.flush()
        self._advance()

    def kill(self) -> None:
        """End the command and its group now; waits for it, which is short after SIGKILL."""
        if self._pidfd >= 0:
            process.signal_group(self._pid, process.SIGKILL)
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

    # --- the process ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._cancel_timer()
        try:
            plan = self._make_plan()
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
        """Start the process with pipes, or detached with nothing connected. :raise OSError:"""
        descriptors: list[int] = []
        try:
            if self._is_detached:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                descriptors.append(null)
                self._pid = process.start(plan, null, null, null)
            else:
                for _ in range(3):
                    descriptors.extend(os.pipe2(os.O_CLOEXEC))
                stdin, own_stdin, own_stdout, stdout, own_stderr, stderr = descriptors
                self._pid = process.start(plan, stdin, stdout, stderr)
                for fd in (own_stdin, own_stdout, own_stderr):
                    os.set_blocking(fd, False)
                    descriptors.remove(fd)
                for fd in (own_stdin, own_stdout):
                    enlarge(fd, PIPE_SIZE)
                self._stdin = own_stdin
                self._outputs = {own_stdout: True, own_stderr: False}
        finally:
            for fd in descriptors:
                os.close(fd)
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.watch(self._pidfd, READ, self._exited)
        self._watch_outputs()

    def _exited(self, events: int) -> None:
        del events
        self._has_exited = True
        self._loop.forget(self._pidfd)
        if self._is_detached:
            self._reap()
        else:
            # With the caller gone this does nothing: others of the group have until the timer to end by themselves.
            self._advance()

    def _reap(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        return process.exit_code(status)

    # --- stdin ---------------------------------------------------------------------------------------------------

    def _pump_stdin(self, events: int = 0) -> None:
        del events
        try:
            if self._stdin >= 0 and self._stdin_queue:
                drop(self._stdin_queue, os.writev(self._stdin, self._stdin_queue[:MAX_PIECES]))
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
        if self._stdin >= 0:
            self._loop.forget(self._stdin)
        if self._stdin_ended:
            self._close_stdin()
        self._grant()

    def _grant(self) -> None:
        """What was taken off the stream so far is dealt with, once."""
        count, self._unconsumed = self._unconsumed, 0
        self._link.consumed(self._stream, count)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

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
        self._read_output(is_stdout=True)

    def _read_stderr(self, events: int) -> None:
        del events
        self._read_output(is_stdout=False)

    def _read_output(self, *, is_stdout: bool) -> None:
        found = [fd for fd in self._outputs if self._outputs[fd] == is_stdout]
        if not found or self._writer is None or not self._writer.is_empty:
            return
        fd = found[0]
        header = self._channel.stdout_header if is_stdout else self._channel.stderr_header
        if self._link.convey(self._stream, fd, header):
            self._advance()
            return
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        if data:
            self._writer.write(header(len(data)), data)
        else:
            self._close_output(fd)
            self._writer.write(self._channel.stdout_end() if is_stdout else self._channel.stderr_end())
        self._advance()

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._loop.forget(fd)
        os.close(fd)

    def _close_outputs(self) -> None:
        for fd in tuple(self._outputs):
            self._close_output(fd)

    # --- the end -------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on with whatever became possible: more output, the exit code, the end of the stream."""
        if self._writer is None:
            return
        if not self._is_finished and self._has_exited and not self._outputs:
            self._finish(self._reap())
        elif self._is_finished and self._writer.is_empty:
            self._close_stream()
        else:
            self._watch_outputs()

    def _finish(self, code: int) -> None:
        """Send the last messages; the stream is closed once they have gone."""
        self._is_finished = True
        self._stdin_queue.clear()
        self._close_stdin()
        if self._writer is not None:
            end = self._channel.finish_detached(code) if self._is_detached else self._channel.finish(code)
            self._writer.write(end)
            self._advance()

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
