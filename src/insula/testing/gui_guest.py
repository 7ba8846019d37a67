"""A guest that does what a test says: the agent's end of a GUI channel, frame memory, and the real process showing it.

::

    with desktop() as screen, scripted_guest(screen, "work", 0x3465A4) as guest:
        guest.window(1, Rect(100, 100, 400, 300), 0x30C040)
        window = screen.window(r"\\[work\\]")
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

from insula.gui import frame_memory
from insula.gui.geometry import Rect
from insula.testing.desktop import WAIT_S, Desktop
from insula_proto import gui, gui_wire
from insula_proto.gui import Message
from insula_proto.gui_channel import AgentEnd, Hello

MEMORY = 32 << 20
_PAGE = 4096


class ScriptedGuest:
    def __init__(
        self, screen: Desktop, channel: socket.socket, memory: mmap.mmap, process: subprocess.Popen[str], pid: int
    ):
        self._screen = screen
        self._channel = channel
        self._memory = memory
        self._end = AgentEnd(uses_frames=True)
        self._used = 0
        self._pictures: dict[int, tuple[int, int, int]] = {}
        self.process = process
        self.pid = pid
        """Of the process that shows its windows."""
        self.heard: list[Message | Hello] = []

    def greet(self) -> None:
        self._channel.sendall(self._end.hello())
        self.wait(lambda: bool(self.heard))

    def say(self, *messages: Message) -> None:
        self._channel.sendall(self._end.send_all(messages))

    def say_raw(self, data: bytes) -> None:
        self._channel.sendall(data)

    def listen(self) -> list[Message | Hello]:
        """All the host has said so far."""
        with contextlib.suppress(BlockingIOError):
            while data := self._channel.recv(65536, socket.MSG_DONTWAIT):
                self.heard += self._end.receive(data)
        return self.heard

    def wait(self, is_so: Callable[[], bool], otherwise: str = "the host did not say it") -> None:
        """Listen until something is so. :raise TimeoutError:"""
        self._screen.wait(lambda: bool(self.listen()) and is_so(), otherwise)

    def wait_for(self, message: Message) -> None:
        """Listen until the host has said that, and forget all up to it. :raise TimeoutError:"""
        self.wait(lambda: message in self.heard, f"not heard: {message}")
        del self.heard[: self.heard.index(message) + 1]

    def of(self, *kinds: type[Message]) -> list[Message]:
        """What was said of these kinds so far."""
        return [message for message in self.listen() if isinstance(message, kinds)]

    # --- windows -------------------------------------------------------------------------------------------------

    def window(self, number: int, place: Rect, colour: int, *, popup: bool = False, parent: int = 0) -> None:
        """A mapped window all of one colour, painted."""
        self.say(
            gui.Create(number, place.x, place.y, place.width, place.height, 0, popup),
            gui.WindowHints(number, gui.HINT_USER_POSITION),
            gui.Map(number, parent, popup),
        )
        self.picture(number, place.width, place.height, colour)

    def picture(self, number: int, width: int, height: int, colour: int) -> None:
        """A new picture, of one colour, and the word that all of it has changed."""
        self._pictures[number] = (self._used, width, height)
        self._used += -(-gui_wire.picture_size(width, height) // _PAGE) * _PAGE
        self.fill(number, colour)
        self.say(
            gui.FramePicture(number, width, height, self._pictures[number][0]), gui.Damage(number, 0, 0, width, height)
        )

    def fill(self, number: int, colour: int) -> None:
        """Change all pixels of its picture, and tell nobody."""
        offset, width, height = self._pictures[number]
        self._memory[offset : offset + 4 * width * height] = colour.to_bytes(4, "little") * (width * height)

    def put(self, number: int, rect: Rect, colour: int) -> None:
        """Change some pixels, and tell nobody."""
        offset, width, _ = self._pictures[number]
        for row in range(rect.y, rect.bottom):
            start = offset + 4 * (row * width + rect.x)
            self._memory[start : start + 4 * rect.width] = colour.to_bytes(4, "little") * rect.width

    def hang_up(self) -> int:
        """Close the channel; return the exit code of the host's process."""
        self._channel.close()
        return self.process.wait(WAIT_S)


@contextlib.contextmanager
def scripted_guest(screen: Desktop, qube: str, colour: int) -> Iterator[ScriptedGuest]:
    """A qube of that name and colour, greeted; its process ends with the block."""
    descriptor = frame_memory.make(MEMORY)
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        stack.callback(ours.close)
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "insula.testing.gui_host",
                    qube,
                    hex(colour),
                    str(theirs.fileno()),
                    str(descriptor),
                ],
                env=screen.environment,
                pass_fds=(theirs.fileno(), descriptor),
                stdout=subprocess.PIPE,
                text=True,
            )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        memory = stack.enter_context(mmap.mmap(descriptor, MEMORY))
        assert process.stdout is not None
        started = process.stdout.readline()
        if not started:
            raise RuntimeError("the process that shows windows did not start")
        guest = ScriptedGuest(screen, ours, memory, process, int(started))
        guest.greet()
        yield guest
