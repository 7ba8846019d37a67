"""The GUI agent: ``python3 -m insula_agent.gui.main --channel fd:N --frames fd:N|PATH --display :N``.

``--channel`` is a stream to the host's ``insula-gui``, ``--frames`` the frame memory (a device's memory, or a
descriptor). It ends with the channel or the X server; whoever started it starts it again. In a qube that is
:mod:`insula_agent.gui.session`, by :func:`serve`; there the X server is started when the host has said how large its
screen is.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from insula_agent import sockets
from insula_agent.gui import server
from insula_agent.gui.server import NoDisplay
from insula_agent.link import TransportError, open_transport
from insula_agent.log import log
from insula_agent.loop import READ, WRITE, Loop
from insula_proto import gui, gui_channel
from insula_proto.errors import RemoteProtocolError
from insula_proto.gui_channel import AgentEnd, Hello

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from insula_agent.gui.display import Display
    from insula_agent.gui.images import Conversion
    from insula_agent.gui.keyboard import KeyboardLayout
    from insula_agent.gui.monitors import Monitors
    from insula_agent.gui.selection import Selection
    from insula_agent.gui.windows import Windows
    from insula_agent.sockets import Socket
    from insula_proto.gui import Message
    from insula_proto.gui_channel import Screen

READ_SIZE = 65536
RESOURCES = """\
Xft.antialias:\t1
Xft.hinting:\t1
Xft.hintstyle:\thintslight
Xft.rgba:\tnone
XTerm*faceName:\tMonospace
XTerm*faceSize:\t10
"""
"""Defaults of programs that ask the X server for them. The fonts of old, in its own format, are not installed."""
EXIT_OK = 0
EXIT_USAGE = 64
EXIT_NO_HOST = 69
EXIT_PROTOCOL = 76
"""As in sysexits.h."""


class GuiAgent:
    """Of one connection; it may be in the X server before there is one."""

    def __init__(self, loop: Loop, find_display: Callable[[Screen], str]) -> None:
        """``find_display`` names an X server that can be used; it may raise NoDisplay."""
        self._loop = loop
        self._find_display = find_display
        self._end = AgentEnd(uses_frames=True)
        self._channel = -1
        self._frames = -1
        self._queued = bytearray()
        self._display: Display | None = None
        self._windows: Windows | None = None
        self._selection: Selection | None = None
        self._keyboard: KeyboardLayout | None = None
        self._monitors: Monitors | None = None
        self._copy_for = gui.NO_WINDOW
        self._conversions: dict[Sequence[str], Conversion] = {}
        """Of an image that is copied, and of one to be pasted: the last each, by its program."""

    def enter(self, name: str) -> None:
        """Connect to that X server and be its window manager. :raise NoDisplay:"""
        # Late: the X server is started meanwhile.
        from insula_agent.gui.display import Display  # noqa: PLC0415
        from insula_agent.gui.keyboard import KeyboardLayout  # noqa: PLC0415
        from insula_agent.gui.monitors import Monitors  # noqa: PLC0415
        from insula_agent.gui.selection import Selection  # noqa: PLC0415
        from insula_agent.gui.windows import Windows  # noqa: PLC0415

        display = self._display = Display(name)
        display.set_resources(RESOURCES)
        self._selection = Selection(display, self._loop, self._copied, self._image_copied)
        self._windows = Windows(display, self._send)
        self._windows.enter({self._selection.window})
        self._keyboard = KeyboardLayout(display, name)
        self._monitors = Monitors(display)
        display.flush()

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the X server it is in."""
        if self._display is None:
            return None
        screen = self._display.screen
        return screen.width_in_pixels, screen.height_in_pixels

    def leave(self) -> None:
        """Let go of the X server."""
        if self._display is not None:
            self._display.close()
            self._display = self._windows = self._selection = self._keyboard = self._monitors = None

    def begin(self, channel: int, frames: int) -> None:
        """Greet the host. Takes over the descriptors."""
        self._channel, self._frames = channel, frames
        self._queued += self._end.hello()
        self._loop.watch(channel, READ, self._channel_ready)
        self._loop.before_wait(self._work)

    def _start(self, hello: Hello) -> None:
        """Find the X server and tell of its windows. :raise NoDisplay:"""
        assert hello.screen is not None
        name = self._find_display(hello.screen)
        if self._display is None:
            self.enter(name)
        assert self._display is not None
        assert self._windows is not None
        assert self._selection is not None
        self._display.attach(self._frames)
        self._selection.limit = gui_channel.max_clipboard(hello.minor)
        self._windows.start(os.fstat(self._frames).st_size)
        os.close(self._frames)
        self._loop.watch(self._display.fd, READ, lambda events: None)

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
        except NoDisplay as error:
            log(f"no X server: {error}")
            self._loop.stop(EXIT_NO_HOST)

    def _take(self, message: Hello | Message) -> None:
        if isinstance(message, Hello):
            self._start(message)
        elif isinstance(message, (gui.ClipboardRequest, gui.ClipboardData, gui.ClipboardImage)):
            self._take_clipboard(message)
        elif isinstance(message, gui.Keyboard):
            if self._keyboard is not None:
                self._keyboard.set(message)
        elif isinstance(message, gui.Screens):
            if self._monitors is not None:
                self._monitors.set(message)
        elif isinstance(message, gui.Unknown):
            log(f"message type {message.type} of the host is not known here")
        elif self._windows is not None:
            if self._keyboard is not None and isinstance(message, gui.Key):
                self._keyboard.take_state(message.state)
            self._windows.take_message(message)

    def _take_clipboard(self, message: Message) -> None:
        if isinstance(message, gui.ClipboardRequest):
            self._copy_for = message.window
            self._cancel_copy()
            if self._selection is not None:
                self._selection.request()
        elif isinstance(message, gui.ClipboardData):
            if self._selection is not None:
                self._selection.offer(message.data)
        elif isinstance(message, gui.ClipboardImage):
            self._image_pasted(message)

    def _cancel_copy(self) -> None:
        """What was copied before is not the answer to what is copied now."""
        from insula_agent.gui import images  # noqa: PLC0415 - with the rest that takes long

        if images.DECODER in self._conversions:
            self._conversions.pop(images.DECODER).cancel()

    def _copied(self, data: bytes | None) -> None:
        if data is None:
            self._queued += self._end.refuse_clipboard(self._copy_for)
        else:
            self._send(gui.ClipboardData(self._copy_for, data))

    def _image_copied(self, file: bytes) -> None:
        def converted(answer: bytes | None) -> None:
            image = None if answer is None else images.image_of(answer)
            self._send(
                gui.ClipboardData(self._copy_for, b"") if image is None else gui.ClipboardImage(self._copy_for, *image)
            )

        from insula_agent.gui import images  # noqa: PLC0415 - with the rest that takes long

        self._convert(images.DECODER, images.request(file), images.MAX_PIXELS_FILE, converted)

    def _image_pasted(self, message: gui.ClipboardImage) -> None:
        from insula_agent.gui import images  # noqa: PLC0415 - with the rest that takes long

        selection, source = self._selection, images.pixels_of(message.width, message.height, message.pixels)
        if selection is not None and source is not None:
            selection.offer_image(None)
            self._convert(images.ENCODER, source, images.MAX_FILE, selection.offer_image)

    def _convert(self, argv: Sequence[str], data: bytes, most: int, done: Callable[[bytes | None], None]) -> None:
        from insula_agent.gui.images import Conversion  # noqa: PLC0415 - with the rest that takes long

        if argv in self._conversions:
            self._conversions.pop(argv).cancel()
        try:
            self._conversions[argv] = Conversion(self._loop, argv, data, most, done)
        except OSError as error:
            log(f"an image could not be converted: {error}")
            done(None)

    def _work(self) -> None:
        """All that the X server said, then copies, then what there is to say; nothing is left in a queue of a library
        when the loop waits."""
        try:
            if self._display is not None and self._windows is not None:
                self._look(self._display, self._windows)
        except NoDisplay as error:
            log(f"the X server is gone: {error}")
            self._loop.stop(EXIT_NO_HOST)
            return
        self._write()

    def _look(self, display: Display, windows: Windows) -> None:
        """:raise NoDisplay:"""
        is_busy = True
        while is_busy:
            is_busy = False
            for event in display.events():
                is_busy = True
                self._take_event(event, windows)
            if windows.copy():
                is_busy = True
                self._write()  # The host paints it while we look for more.
        display.flush()

    def _take_event(self, event: object, windows: Windows) -> None:
        name = type(event).__name__
        if self._selection is not None and name.startswith("Selection"):
            if name == "SelectionNotifyEvent":
                self._selection.notified(event)
            elif name == "SelectionRequestEvent":
                self._selection.requested(event)
            return
        if self._selection is not None and name == "PropertyNotifyEvent" and event.window == self._selection.window:  # type: ignore[attr-defined] # of xcffib
            self._selection.property_changed(event)
            return
        if self._keyboard is not None and name == "MappingNotifyEvent":
            self._keyboard.changed()
        windows.take_event(event)

    def _write(self) -> None:
        try:
            while self._queued:
                del self._queued[: os.write(self._channel, self._queued)]
        except BlockingIOError:
            pass
        except OSError as error:
            log(f"the host is gone: {error}")
            self._queued.clear()
            self._loop.stop(EXIT_NO_HOST)
        self._loop.watch(self._channel, READ | WRITE if self._queued else READ, self._channel_ready)


def _open_frames(name: str) -> int:
    if name.startswith("fd:"):
        return int(name[3:])
    return os.open(name, os.O_RDWR | os.O_CLOEXEC)


def _know_libraries() -> None:
    """xcffib asks where libxcb is, for which the standard library runs three programs; in a qube it is known."""
    import ctypes  # noqa: PLC0415 - with the rest that takes long

    libraries = ModuleType("ctypes.util")
    vars(libraries)["find_library"] = "lib{}.so.1".format
    sys.modules[libraries.__name__] = vars(ctypes)["util"] = libraries


def load() -> None:
    """Load what takes long; in a qube."""
    _know_libraries()
    import insula_agent.gui.keyboard  # noqa: PLC0415
    import insula_agent.gui.monitors  # noqa: PLC0415
    import insula_agent.gui.selection  # noqa: PLC0415
    import insula_agent.gui.windows  # noqa: F401, PLC0415


def serve(line: Socket, on_session: Callable[[], object], *, may_replace: bool) -> int:
    """Be the agent of one connection in a qube; ``on_session`` is called when programs can be started.

    In the X server at once, if one runs; then the channel and the frame memory come over ``line``, or its end. Returns
    an exit code.

    :param may_replace: nobody uses the X server yet: one that is too small for the host's screen is started anew.
    """

    def find_display(screen: Screen) -> str:
        size = agent.size
        if size is not None and may_replace and (screen.width > size[0] or screen.height > size[1]):
            agent.leave()
            server.stop()
            size = None
        if size is None:
            started = server.Server(screen.width, screen.height, os.environ)
            # While the X server does the same.
            load()
            started.wait()
        on_session()
        return server.DISPLAY

    loop = Loop()
    agent = GuiAgent(loop, find_display)
    if server.is_running():
        load()
        agent.enter(server.DISPLAY)
    _, descriptors = sockets.receive_with_descriptors(line, 1, 2)
    if len(descriptors) != 2:
        return EXIT_OK
    agent.begin(*descriptors)
    return loop.run()


def main(arguments: Sequence[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2]))  # noqa: B905 - Python 3.9 has no strict
    if options.keys() != {"--channel", "--frames", "--display"}:
        log("usage: --channel fd:N --frames fd:N|PATH --display :N")
        return EXIT_USAGE
    loop = Loop()
    try:
        channel = open_transport(options["--channel"])
        agent = GuiAgent(loop, lambda screen: options["--display"])
        agent.begin(channel, _open_frames(options["--frames"]))
        return loop.run()
    except (TransportError, OSError) as error:
        log(str(error))
        return EXIT_NO_HOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
