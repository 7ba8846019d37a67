"""A data channel joined to descriptors: what ``qrexec-client`` and a service of the host do once they are connected.

One loop over poll(2), nothing blocks, nothing is buffered without bound (MC-14): what the channel brings is read only
when what came before was taken, and input is read only while little of ours waits for the channel. Which message may
come when is :mod:`insula_proto.qrexec_channel`'s to know.

::

    CallerRelay    input → STDIN     STDOUT → output, STDERR → errors     ends with EXIT_CODE; returns it
    ServiceRelay   STDIN → output    input → STDOUT                       ends with the service; sends EXIT_CODE
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from functools import partial

from insula.qrexec.descriptors import MAX_PIECES, Data, Local, Outlet, Poller, drop
from insula.qrexec.log import say
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import EXIT_CHANNEL_LOST, EXIT_SIGNAL_BASE, ExitCode, Message, Stderr, Stdin, Stdout
from insula_proto.qrexec_channel import CallerEnd, ServiceEnd

READ_SIZE = 262144
"""Bytes taken from the channel at once; also what an outlet holds at most."""
MAX_QUEUED = 131072
"""Bytes waiting for the channel above which no input is read."""


class _Sender:
    """What waits for the channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._queue: list[Data] = []
        self.is_dead = False
        """The other end does not read any more; it may still have something to say."""

    @property
    def is_busy(self) -> bool:
        return bool(self._queue)

    @property
    def has_room(self) -> bool:
        return not self._queue or sum(map(len, self._queue)) < MAX_QUEUED

    def send(self, *parts: Data) -> None:
        if not self.is_dead:
            self._queue += parts
            self.flush()

    def flush(self) -> None:
        while self._queue:
            try:
                count = self._channel.sendmsg(self._queue[:MAX_PIECES])
            except BlockingIOError:
                return
            except OSError:
                self.is_dead = True
                self._queue.clear()
                return
            self._queue = drop(self._queue, count)


# --- the two ends --------------------------------------------------------------------------------------------------


class _Relay:
    """What both ends share. ``channel`` is owned, and closed by :meth:`run`."""

    def __init__(self, channel: socket.socket, end: CallerEnd | ServiceEnd, inlet: Local) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._end = end
        self._inlet = inlet
        self._poller = Poller()
        self._sender = _Sender(channel)
        self._is_connected = True
        """Whether more may come over the channel."""
        self._child: int | None = None
        """Process descriptor of the local process, until it has ended…"""
        self._pid = 0
        self._child_code: int | None = None
        """…and its exit code then."""

    def adopt(self, pid: int) -> None:
        """Wait for this process as well, which is the one behind the local descriptors."""
        self._pid = pid
        self._child = os.pidfd_open(pid)

    # for subclasses

    @property
    def _is_over(self) -> bool:
        raise NotImplementedError

    def _outlets(self) -> list[Outlet]:
        raise NotImplementedError

    def _received(self, messages: list[Message]) -> None:
        raise NotImplementedError

    def _header(self, size: int) -> bytes:
        raise NotImplementedError

    def _input_ended(self) -> None:
        raise NotImplementedError

    def _child_ended(self) -> None:
        raise NotImplementedError

    # the loop

    def _loop(self) -> None:
        while not self._is_over:
            self._watch()
            self._poller.step()

    def _watch(self) -> None:
        interest = 0
        if self._is_connected and not any(outlet.is_busy for outlet in self._outlets()):
            interest = select.POLLIN
        if self._sender.is_busy:
            interest |= select.POLLOUT
        self._set(self._channel.fileno(), interest, self._channel_ready)
        wants_input = self._inlet.is_open and self._sender.has_room
        for outlet in self._outlets():
            if outlet.is_open and not (wants_input and outlet.local.fd == self._inlet.fd):
                # Without interest, to be told when the reader goes away.
                handler = partial(self._outlet_ready, outlet)
                self._poller.watch(outlet.local.fd, select.POLLOUT if outlet.is_busy else 0, handler)
        if wants_input:
            self._watch_input()
        elif not any(outlet.is_open and outlet.local.fd == self._inlet.fd for outlet in self._outlets()):
            self._poller.forget(self._inlet.fd)
        if self._child is not None:
            self._poller.watch(self._child, select.POLLIN, self._reap)

    def _watch_input(self) -> None:
        """The inlet, which may be the outlet's descriptor too."""
        for outlet in self._outlets():
            if outlet.is_open and outlet.local.fd == self._inlet.fd:
                interest = select.POLLIN | (select.POLLOUT if outlet.is_busy else 0)
                self._poller.watch(self._inlet.fd, interest, partial(self._both_ready, outlet))
                return
        self._poller.watch(self._inlet.fd, select.POLLIN, self._inlet_ready)

    def _set(self, fd: int, interest: int, handler: Callable[[int], None]) -> None:
        if interest:
            self._poller.watch(fd, interest, handler)
        else:
            self._poller.forget(fd)

    def _both_ready(self, outlet: Outlet, events: int) -> None:
        if events & (select.POLLOUT | select.POLLHUP | select.POLLERR):
            self._outlet_ready(outlet, events)
        if self._inlet.is_open:
            self._inlet_ready(events)

    def _outlet_ready(self, outlet: Outlet, events: int) -> None:
        fd = outlet.local.fd
        if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            outlet.close()
        elif events & select.POLLOUT:
            outlet.flush()
        if not outlet.is_open and not (self._inlet.is_open and self._inlet.fd == fd):
            self._poller.forget(fd)

    def _inlet_ready(self, events: int) -> None:
        del events
        try:
            data = os.read(self._inlet.fd, self._end.max_chunk)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._sender.send(self._header(len(data)), data)
        else:
            self._close_input()
            self._input_ended()

    def _close_input(self) -> None:
        if not any(outlet.is_open and outlet.local.fd == self._inlet.fd for outlet in self._outlets()):
            self._poller.forget(self._inlet.fd)
        self._inlet.close()

    def _channel_ready(self, events: int) -> None:
        if events & (select.POLLOUT | select.POLLHUP | select.POLLERR):
            self._sender.flush()
        if not self._is_connected or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            untrusted_data = self._channel.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            # Reset: the other end closed without reading all of ours.
            untrusted_data = b""
        if not untrusted_data:
            self._is_connected = False
            return
        try:
            self._received(self._end.receive(untrusted_data))
        except RemoteProtocolError as error:
            say(f"data channel: {error}")
            self._is_connected = False

    def _reap(self, events: int) -> None:
        del events
        assert self._child is not None
        self._poller.forget(self._child)
        os.close(self._child)
        self._child = None
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._child_code = code if code >= 0 else EXIT_SIGNAL_BASE - code
        self._child_ended()

    def _finish(self) -> None:
        """Close all; the local process then learns that the call is over, and is waited for."""
        for outlet in self._outlets():
            outlet.close()
        self._inlet.close()
        self._channel.close()
        if self._child is not None:
            self._reap(0)


class CallerRelay(_Relay):
    """The end that called. ``output`` may be the inlet's descriptor, if that is a socket."""

    _end: CallerEnd

    def __init__(self, channel: socket.socket, end: CallerEnd, inlet: Local, output: Outlet, errors: Outlet) -> None:
        super().__init__(channel, end, inlet)
        self._output = output
        self._errors = errors
        self._is_stdin_ended = False

    def run(self, early: list[Message], prefix: bytes = b"") -> int:
        """Relay until all is over; return the service's exit code, or the local process's if that is 0.

        :param early: what came with the peer's HELLO.
        :param prefix: sent before anything of the inlet.
        """
        for part in self._end.stdin(prefix):
            self._sender.send(part)
        self._received(early)
        try:
            self._loop()
        finally:
            self._finish()
        code = EXIT_CHANNEL_LOST if self._end.exit_code is None else self._end.exit_code
        return code if code else self._child_code or 0

    @property
    def _is_over(self) -> bool:
        if self._output.is_busy or self._errors.is_busy:
            return False
        if self._end.exit_code is None:
            return not self._is_connected
        return self._child is None

    def _outlets(self) -> list[Outlet]:
        return [self._output, self._errors]

    def _header(self, size: int) -> bytes:
        return self._end.stdin_header(size)

    def _received(self, messages: list[Message]) -> None:
        output: list[Data] = []
        errors: list[Data] = []
        ended: list[Outlet] = []
        for message in messages:
            if isinstance(message, Stdout):
                if message.data:
                    output.append(message.data)
                else:
                    ended.append(self._output)
            elif isinstance(message, Stderr):
                # Its end is not passed on: what we say to people ourselves goes the same way.
                if message.data:
                    errors.append(message.data)
            elif isinstance(message, ExitCode):
                # The service needs nothing more from us. What we owe the output is still written.
                self._close_input()
                self._input_ended()
                ended.append(self._output)
        if output:
            self._output.write(output)
        if errors:
            self._errors.write(errors)
        for outlet in ended:
            self._end_outlet(outlet)

    def _end_outlet(self, outlet: Outlet) -> None:
        fd = outlet.local.fd
        outlet.end()
        if not outlet.is_open and not (self._inlet.is_open and self._inlet.fd == fd):
            self._poller.forget(fd)

    def _input_ended(self) -> None:
        if not self._is_stdin_ended:
            self._is_stdin_ended = True
            self._sender.send(self._end.stdin_end())

    def _child_ended(self) -> None:
        self._end_outlet(self._output)


class ServiceRelay(_Relay):
    """The end that serves, without stderr: a service of the host writes that to the daemon's log.

    ``ends_with_client``, ``ends_with_service``: the end of either stream ends the call (``rpc-config``; sockets only).
    """

    _end: ServiceEnd

    def __init__(
        self,
        channel: socket.socket,
        end: ServiceEnd,
        inlet: Local,
        output: Outlet,
        *,
        ends_with_client: bool = False,
        ends_with_service: bool = False,
    ) -> None:
        super().__init__(channel, end, inlet)
        self._output = output
        self._ends_with_client = ends_with_client
        self._ends_with_service = ends_with_service

    def run(self, early: list[Message], before: bytes = b"") -> int:
        """Relay until all is over; return the service's exit code.

        :param early: what came with the peer's HELLO.
        :param before: given to the service before what the caller sends.
        """
        self._sender.send(self._end.stderr_end())
        if before:
            self._output.write([before])
        self._received(early)
        try:
            self._loop()
            code = self._child_code or 0
            if self._is_connected:
                self._sender.send(self._end.finish(code))
                self._drain()
        finally:
            self._finish()
        return self._child_code or 0

    @property
    def _is_over(self) -> bool:
        if not self._is_connected:
            return not self._output.is_busy
        # A process has ended when it was reaped; a socket, when it takes nothing more.
        is_served = self._child is None if self._pid else not self._output.is_open
        return is_served and not self._inlet.is_open

    def _outlets(self) -> list[Outlet]:
        return [self._output]

    def _header(self, size: int) -> bytes:
        return self._end.stdout_header(size)

    def _received(self, messages: list[Message]) -> None:
        data: list[Data] = []
        has_ended = False
        for message in messages:
            assert isinstance(message, Stdin)
            if message.data:
                data.append(message.data)
            else:
                has_ended = True
        if data:
            self._output.write(data)
        if has_ended:
            if self._ends_with_client:
                self._end_call()
            else:
                self._output.end()
        self._forget_closed_output()

    def _forget_closed_output(self) -> None:
        if not self._output.is_open and not (self._inlet.is_open and self._inlet.fd == self._output.local.fd):
            self._poller.forget(self._output.local.fd)

    def _input_ended(self) -> None:
        self._sender.send(self._end.stdout_end())
        if self._ends_with_service:
            self._output.close()
        self._forget_closed_output()

    def _child_ended(self) -> None:
        self._output.close()
        self._forget_closed_output()

    def _end_call(self) -> None:
        if self._inlet.is_open:
            self._close_input()
            self._sender.send(self._end.stdout_end())
        self._output.close()

    def _drain(self) -> None:
        """Send the last of it, as long as somebody is there."""
        while self._sender.is_busy:
            self._poller.watch(self._channel.fileno(), select.POLLOUT, self._channel_ready)
            self._poller.step()
