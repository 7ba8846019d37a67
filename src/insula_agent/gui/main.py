"""The GUI agent: ``python3 -m insula_agent.gui.main --channel fd:N --frames fd:N|PATH --display :N``.

``--channel`` is a stream to the host's ``insula-gui``, ``--frames`` the frame memory (a device's memory, or a
descriptor). It ends with the channel or the X server; whoever started it starts it again.
"""

from __future__ import annotations

import os
import sys

from insula_agent.gui.display import Display, NoDisplay
from insula_agent.gui.selection import Selection
from insula_agent.gui.windows import Windows
from insula_agent.link import TransportError, open_transport
from insula_agent.log import log
from insula_agent.loop import READ, WRITE, Loop
from insula_proto import gui, gui_channel
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui_channel import AgentEnd, Hello

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from insula_proto.gui import Message

READ_SIZE = 65536
EXIT_OK = 0
EXIT_USAGE = 64
EXIT_NO_HOST = 69
EXIT_PROTOCOL = 76
"""As in sysexits.h."""


class GuiAgent:
    def __init__(self, loop: Loop, channel: int, frames: int, display_name: str) -> None:
        """Takes over the descriptors. :raise NoDisplay:"""
        self._loop = loop
        self._channel = channel
        self._end = AgentEnd(uses_frames=True)
        self._queued = bytearray(self._end.hello())
        size = os.lseek(frames, 0, os.SEEK_END)
        self._display = Display(display_name, frames)
        os.close(frames)
        self._windows = Windows(self._display, size, self._send)
        self._selection: Selection | None = None
        self._copy_for = gui.NO_WINDOW
        self._is_started = False
        loop.watch(channel, READ, self._channel_ready)
        loop.watch(self._display.fd, READ, lambda events: None)
        loop.before_wait(self._work)

    def _send(self, message: Message) -> None:
        self._queued += self._end.send(message)

    def _channel_ready(self, events: int) -> None:
        del events
        try:
            data = os.read(self._channel, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            log(f"the host is gone: {error}")
            data = b""
        if not data:
            self._loop.stop(EXIT_NO_HOST)
            return
        try:
            for message in self._end.receive(data):
                self._take(message)
        except RemoteProtocolError as error:
            log(f"the host: {error}")
            self._loop.stop(EXIT_PROTOCOL)

    def _take(self, message: Hello | Message) -> None:
        if isinstance(message, Hello):
            limit = gui_channel.max_clipboard(message.minor)
            self._selection = Selection(self._display, self._loop, limit, self._copied)
            self._windows.start({self._selection.window})
            self._is_started = True
        elif isinstance(message, gui.ClipboardRequest):
            self._copy_for = message.window
            if self._selection is not None:
                self._selection.request()
        elif isinstance(message, gui.ClipboardData):
            if self._selection is not None:
                self._selection.offer(message.data)
        elif isinstance(message, gui.Unknown):
            log(f"message type {message.type} of the host is not known here")
        else:
            self._windows.take_message(message)

    def _copied(self, data: bytes | None) -> None:
        if data is None:
            self._queued += self._end.refuse_clipboard(self._copy_for)
        else:
            self._send(gui.ClipboardData(self._copy_for, data))

    def _work(self) -> None:
        """All that the X server said, then copies, then what there is to say; nothing is left in a queue of a library
        when the loop waits."""
        try:
            is_busy = self._is_started
            while is_busy:
                is_busy = False
                for event in self._display.events():
                    is_busy = True
                    self._take_event(event)
                is_busy = self._windows.copy() or is_busy
            self._display.flush()
        except NoDisplay as error:
            log(f"the X server is gone: {error}")
            self._loop.stop(EXIT_NO_HOST)
            return
        self._write()

    def _take_event(self, event: object) -> None:
        name = type(event).__name__
        if self._selection is not None and name.startswith("Selection"):
            if name == "SelectionNotifyEvent":
                self._selection.notified(event)
            elif name == "SelectionRequestEvent":
                self._selection.requested(event)
            return
        self._windows.take_event(event)

    def _write(self) -> None:
        try:
            while self._queued:
                del self._queued[: os.write(self._channel, self._queued)]
        except BlockingIOError:
            pass
        except OSError as error:
            log(f"the host is gone: {error}")
            self._loop.stop(EXIT_NO_HOST)
        self._loop.watch(self._channel, READ | WRITE if self._queued else READ, self._channel_ready)


def _open_frames(name: str) -> int:
    if name.startswith("fd:"):
        return int(name[3:])
    return os.open(name, os.O_RDWR | os.O_CLOEXEC)


def main(arguments: Sequence[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2]))  # noqa: B905 - Python 3.9 has no strict
    if options.keys() != {"--channel", "--frames", "--display"}:
        log("usage: --channel fd:N --frames fd:N|PATH --display :N")
        return EXIT_USAGE
    loop = Loop()
    try:
        channel = open_transport(options["--channel"])
        GuiAgent(loop, channel, _open_frames(options["--frames"]), options["--display"])
        return loop.run()
    except (NoDisplay, TransportError, OSError) as error:
        log(str(error))
        return EXIT_NO_HOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
