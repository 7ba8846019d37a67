"""``python3 -I -S …/notifications/server.py``: tells the host what programs of this qube tell their desktop.

The session's bus starts it for the first notification (``/usr/share/dbus-1/services``); it ends when nothing was told
for a while, so a qube whose programs are silent pays nothing. One call to the host at a time; of what waits meanwhile
the newest of each number is kept, and at most :data:`MAX_WAITING`.
"""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from insula_agent import client_call
from insula_agent.log import log
from insula_agent.loop import READ, Loop
from insula_agent.notifications import service
from insula_agent.notifications.bus import Bus, NoBus, socket_address
from insula_agent.notifications.service import Service
from insula_proto import notification
from insula_proto.errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.notifications.wire import Message
    from insula_proto.notification import Notification

HOST = "dom0"
HOST_SERVICE = "insula.Notify"
MAX_WAITING = 16
SHOWN_S = 10.0
"""After which a notification is said to have gone: about as long as the host shows it."""
IDLE_S = 60.0
EXIT_OK = 0
EXIT_NO_BUS = 69
"""As in sysexits.h."""


class Server:
    def __init__(self, loop: Loop, bus: Bus, first_number: int) -> None:
        self._loop = loop
        self._bus = bus
        self._service = Service(first_number)
        self._waiting: dict[int, Notification] = {}
        self._pid = 0
        """Of the call under way; 0: none."""
        self._told: Notification | None = None
        self._is_refused = False
        self._idle = loop.after(IDLE_S, lambda: loop.stop(EXIT_OK))
        loop.watch(bus.fileno(), READ, self._readable)
        loop.before_wait(self._tell_next)
        self._take_all(bus.early())

    def _readable(self, events: int) -> None:
        del events
        try:
            messages = self._bus.receive()
        except (OSError, RemoteProtocolError) as error:
            log(f"notifications: {error}")
            messages = None
        if messages is None:
            self._loop.stop(EXIT_NO_BUS)
        else:
            self._take_all(messages)

    def _take_all(self, messages: list[Message]) -> None:
        for message in messages:
            answers, told = self._service.take(message)
            for answer in answers:
                self._send(answer)
            if told is not None:
                self._waiting.pop(told.number, None)
                self._waiting[told.number] = told
                if len(self._waiting) > MAX_WAITING:
                    del self._waiting[next(iter(self._waiting))]
        if messages:
            self._stay()

    def _stay(self) -> None:
        self._idle.cancel()
        self._idle = self._loop.after(IDLE_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._pid or self._waiting:
            self._stay()
        else:
            self._loop.stop(EXIT_OK)

    def _send(self, message: Message) -> None:
        try:
            self._bus.send(message)
        except OSError as error:
            log(f"notifications: {error}")
            self._loop.stop(EXIT_NO_BUS)

    def _tell_next(self) -> None:
        if self._pid or not self._waiting:
            return
        number = next(iter(self._waiting))
        told = self._waiting.pop(number)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # (A pipe holds more than the longest notification.)
            os.write(writing, notification.encode(told))
            self._pid = client_call.start(client_call.command(HOST, HOST_SERVICE), reading, null)
        except OSError as error:
            log(f"notifications: {error}")
            return
        finally:
            for descriptor in (reading, writing, null):
                os.close(descriptor)
        self._told = told
        pidfd = os.pidfd_open(self._pid)
        self._loop.watch(pidfd, READ, lambda events: self._told_host(pidfd))

    def _told_host(self, pidfd: int) -> None:
        self._loop.forget(pidfd)
        os.close(pidfd)
        code = client_call.exit_code(self._pid)
        told, self._pid, self._told = self._told, 0, None
        if code and not self._is_refused:
            log(f"notifications: the host does not take them ({code})")
        self._is_refused = bool(code)
        if told is not None and not told.is_withdrawn:
            gone = told.number
            self._loop.after(SHOWN_S, lambda: self._send(self._service.gone(gone, service.EXPIRED)))


def main() -> int:
    loop = Loop()
    try:
        bus = Bus(socket_address(os.environ), service.NAME)
    except (NoBus, RemoteProtocolError) as error:
        log(f"notifications: {error}")
        return EXIT_NO_BUS
    # Numbers of an earlier service, which the host may still show, are not used again.
    Server(loop, bus, int(time.time()))
    return loop.run()


if __name__ == "__main__":
    sys.exit(main())
