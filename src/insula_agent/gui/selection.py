"""The clipboard of the qube's X server: read when the host asks, set when the user pastes.

What is pasted is owned as CLIPBOARD and PRIMARY by a window of the agent until a program copies something else, or a
minute has gone by. Text is asked for first; where there is none, an image, as PNG. Long texts that a program would hand
out in parts (INCR) are not taken, images are.
"""

from __future__ import annotations

import xcffib
import xcffib.xproto

from insula_agent.gui import display as x11
from insula_agent.gui import images
from insula_agent.gui.display import BadRequest, Display

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from insula_agent.loop import Loop, Timer

KEPT = 60.0
"""Seconds that what was pasted can be had."""
ANSWER_TIMEOUT = 4.0
"""Seconds a program has to hand out what it owns, or the next part of it; the host waits longer."""
OWNER_TRIES, OWNER_RETRY = 6, 0.25
"""How often, and after how many seconds each, somebody is looked for who owns the clipboard: a program in an emulated
machine may still be at the keys that copy within it."""
_TEXT_TARGETS = ("UTF8_STRING", "STRING", "TEXT", "text/plain;charset=utf-8", "text/plain")
_IMAGE_TARGET = "image/png"
_PROPERTY = "INSULA_CLIPBOARD"
_NEW_VALUE = 0
"""State of a PropertyNotify."""
_EVERYTHING = 0x7FFFFFFF // 4
"""Words of a property: all of it."""
_NONE = 0


class Selection:
    def __init__(
        self,
        display: Display,
        loop: Loop,
        answer: Callable[[bytes | None], None],
        answer_image: Callable[[bytes], None] | None = None,
    ) -> None:
        """``answer`` gets what was asked for; None: it is longer than :attr:`limit`. ``answer_image`` gets a PNG in
        its place; None: nobody wants one."""
        self._answer_image = answer_image
        self._parts: bytearray | None = None
        """Of an image that comes in parts, so far."""
        self._image: bytes | None = None
        """A PNG, as what was copied last."""
        self._display = display
        self._loop = loop
        self.limit = 0
        """Bytes."""
        self._answer = answer
        self._data: bytes | None = None
        self._wipe_timer: Timer | None = None
        self._answer_timer: Timer | None = None
        self._window = int(display.connection.generate_id())
        display.core.CreateWindow(
            0, self._window, display.root, -10, -10, 1, 1, 0, xcffib.xproto.WindowClass.InputOnly, 0,
            x11.CW.EventMask, [x11.EventMask.PropertyChange],
        )  # fmt: skip

    @property
    def window(self) -> int:
        """Not one to be shown."""
        return self._window

    # --- copying: the host asks ----------------------------------------------------------------------------------

    def request(self) -> None:
        """Ask the owner of the clipboard; the answer comes later."""
        if self._answer_timer is None:
            self._look_for_owner(OWNER_TRIES)

    def _look_for_owner(self, tries: int) -> None:
        display = self._display
        if not display.core.GetSelectionOwner(display.atom("CLIPBOARD")).reply().owner:
            if tries > 1:
                self._answer_timer = self._loop.after(OWNER_RETRY, lambda: self._look_for_owner(tries - 1))
            else:
                self._answer_timer = None
                self._answer(b"")
            return
        self._ask("UTF8_STRING")

    def _ask(self, target: str) -> None:
        display = self._display
        self._wait()
        display.core.ConvertSelection(
            self._window, display.atom("CLIPBOARD"), display.atom(target), display.atom(_PROPERTY), 0
        )

    def _wait(self) -> None:
        """For the owner's next word."""
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        self._answer_timer = self._loop.after(ANSWER_TIMEOUT - OWNER_TRIES * OWNER_RETRY, self._give_up)

    def _give_up(self) -> None:
        self._parts = None
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
            self._answer(b"")

    def notified(self, event: Any) -> None:
        """SelectionNotify: it is in our property, or there is nothing."""
        display = self._display
        if self._answer_timer is None or event.requestor != self._window:
            return
        self._answer_timer.cancel()
        self._answer_timer = None
        is_image = event.target == display.atom(_IMAGE_TARGET)
        if event.property == _NONE and not is_image and self._answer_image is not None:
            self._ask(_IMAGE_TARGET)
            return
        if event.property == _NONE:
            self._answer(b"")
            return
        if is_image:
            self._take_image(event.property)
            return
        length = self.limit // 4 + 1
        reply = display.core.GetProperty(True, self._window, event.property, 0, 0, length).reply()
        data = bytes(reply.value.buf())
        if reply.type == display.atom("INCR") or len(data) > self.limit or reply.bytes_after:
            self._answer(None)
        elif not data and self._answer_image is not None:
            # Some programs give an image's text, which is none.
            self._ask(_IMAGE_TARGET)
        else:
            self._answer(data)

    def _take_image(self, property_: int) -> None:
        reply = self._display.core.GetProperty(True, self._window, property_, 0, 0, _EVERYTHING).reply()
        if reply.type == self._display.atom("INCR"):
            # (Reading it was the word that parts may come.)
            self._parts = bytearray()
            self._wait()
        else:
            self._image_came(bytes(reply.value.buf()))

    def property_changed(self, event: Any) -> None:
        """PropertyNotify of our window: perhaps the next part of an image."""
        is_part = event.atom == self._display.atom(_PROPERTY) and event.state == _NEW_VALUE
        if self._parts is None or self._answer_timer is None or not is_part:
            return
        reply = self._display.core.GetProperty(True, self._window, event.atom, 0, 0, _EVERYTHING).reply()
        part = bytes(reply.value.buf())
        self._parts += part
        if part and len(self._parts) <= images.MAX_FILE:
            self._wait()
            return
        whole, self._parts = bytes(self._parts), None
        self._answer_timer.cancel()
        self._answer_timer = None
        self._image_came(whole)

    def _image_came(self, image: bytes) -> None:
        if self._answer_image is None or not image or len(image) > images.MAX_FILE:
            self._answer(b"")
        else:
            self._answer_image(image)

    # --- pasting: the host sends ---------------------------------------------------------------------------------

    def offer(self, data: bytes) -> None:
        """Own it as what was copied last."""
        self._own(data, None)

    def offer_image(self, image: bytes | None) -> None:
        """The same with a PNG; None: it will come, and what was there is not pasted any more."""
        self._own(None, image)

    def _own(self, data: bytes | None, image: bytes | None) -> None:
        self._data, self._image = data, image
        for name in ("CLIPBOARD", "PRIMARY"):
            self._display.core.SetSelectionOwner(self._window, self._display.atom(name), 0)
        if self._wipe_timer is not None:
            self._wipe_timer.cancel()
        self._wipe_timer = self._loop.after(KEPT, self._wipe)

    def _wipe(self) -> None:
        self._data = self._image = None
        for name in ("CLIPBOARD", "PRIMARY"):
            atom = self._display.atom(name)
            if self._display.core.GetSelectionOwner(atom).reply().owner == self._window:
                self._display.core.SetSelectionOwner(_NONE, atom, 0)

    def cleared(self) -> None:
        """SelectionClear: a program has copied something."""

    def requested(self, event: Any) -> None:
        """SelectionRequest: a program pastes."""
        display = self._display
        content = self._data if self._image is None else self._image
        targets = [display.atom(name) for name in (_TEXT_TARGETS if self._image is None else (_IMAGE_TARGET,))]
        where = event.property or event.target
        given = _NONE
        try:
            if content is None:
                pass
            elif event.target == display.atom("TARGETS"):
                display.set_numbers_of(event.requestor, where, "ATOM", [display.atom("TARGETS"), *targets])
                given = where
            elif event.target in targets:
                display.core.ChangePropertyChecked(
                    0, event.requestor, where, event.target, 8, len(content), content
                ).check()
                given = where
            notice = xcffib.xproto.SelectionNotifyEvent.synthetic(
                event.time, event.requestor, event.selection, event.target, given
            )
            display.core.SendEvent(False, event.requestor, 0, notice.pack())
        except BadRequest:
            return  # whoever asked has gone
