"""The two keys that move text and images: the part of one qube's process, and the board between qubes. Pure.

The host shows and logs nothing of what is copied; in :class:`Board` it is not even bytes, but whatever its owner
passes (a sealed memory file, so that the daemon reads nothing a guest wrote). The sandboxed processes of the source and
of the target each look whether it is valid UTF-8, the second because the first may be the guest's by now. An image is
its size and its pixels: files of images are taken apart in the qube they come from and made in the one they go to, so
nobody else meets what is in them. Rules:

- Nothing happens without a key pressed by the user in a window of the qube (MC-53). One press, one answer: what a guest
  sends unasked, twice, after the time, or after the user went on, is dropped (MC-51).
- Too long, and what is no text, is refused as a whole, with a word to the user; nothing is ever cut (MC-52).
- A new copy clears the board at once, also one that fails: nobody pastes what they believe to have replaced.
- One paste for each copy (MC-54), and only for a time. Policy judges each pair; a target that is refused gets nothing,
  not even the news that there was something (MC-55).
- Order is that of the user's keys, by the display server's clock, not of the messages: a process that was held up
  cannot paste what was copied after its key was pressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from insula.gui.desktop import AskPaste, Command, FailCopy, OfferCopy, Send, StartCopy, Tell
from insula_proto import gui, gui_wire, limits
from insula_proto.errors import RemoteProtocolError

COPY_TIMEOUT = 12.0
"""Seconds a guest has to answer: an emulated one that swaps takes two, and some more to take an image apart. (Who goes
on to another qube meanwhile is told that nothing was copied.)"""
PASTE_TIMEOUT = 5.0
"""Seconds policy has to say whether it may be pasted; it asks nobody."""
DELIVERY_TIMEOUT = PASTE_TIMEOUT + 1.0
"""Seconds from the key to what is pasted."""
KEPT = 300.0
"""Seconds a copy can be pasted."""

Content = TypeVar("Content")


def is_text(untrusted_data: bytes) -> bool:
    """Whether it is valid UTF-8; whatever a program makes of it, no decoder there has to guess."""
    try:
        untrusted_data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class QubeClipboard:
    """One qube's part."""

    def __init__(self, limit: int, image_limit: int = limits.GUI_MAX_IMAGE_PIXELS) -> None:
        """``limit``: bytes of text; ``image_limit``: pixels of an image."""
        self._limit = limit
        self._image_limit = image_limit
        self._number = 0
        self._copy: tuple[int, float] | None = None
        """Number and deadline of the copy the guest was asked for."""
        self._paste: tuple[int, int, float] | None = None
        """Number, window and deadline of the paste that was asked for."""

    def copy(self, window: int, stamp: int, now: float) -> list[Command]:
        """The user pressed the keys that copy."""
        self._number += 1
        self._copy = (self._number, now + COPY_TIMEOUT)
        return [StartCopy(self._number, stamp), Send(gui.ClipboardRequest(window))]

    def received(self, untrusted_data: bytes, now: float) -> list[Command]:
        """The guest sent CLIPBOARD_DATA."""
        number = self._answered(now)
        if number is None:
            return []
        if len(untrusted_data) > self._limit:
            return [FailCopy(number, f"the text is longer than {self._limit} bytes")]
        if not untrusted_data:
            return [FailCopy(number, "there was nothing to copy")]
        if not is_text(untrusted_data):
            return [FailCopy(number, "what it gave is no text")]
        return [OfferCopy(number, untrusted_data)]

    def received_image(self, image: gui.ClipboardImage, now: float) -> list[Command]:
        """The guest sent an image instead."""
        number = self._answered(now)
        if number is None:
            return []
        if image.width * image.height > self._image_limit:
            return [FailCopy(number, self._too_large(image))]
        return [OfferCopy(number, gui_wire.encode_body(image), is_image=True)]

    def _too_large(self, image: gui.ClipboardImage) -> str:
        if not self._image_limit:
            return "no images may be copied or pasted there"
        return f"the image of {image.width} x {image.height} has more than {self._image_limit} pixels"

    def _answered(self, now: float) -> int | None:
        """The number of the copy that this answers; None: nobody asked, or not any more."""
        copy, self._copy = self._copy, None
        return None if copy is None or now >= copy[1] else copy[0]

    def paste(self, window: int, stamp: int, now: float) -> list[Command]:
        """The user pressed the keys that paste."""
        self._number += 1
        self._copy = None
        self._paste = (self._number, window, now + DELIVERY_TIMEOUT)
        return [AskPaste(self._number, stamp)]

    def deliver(self, number: int, untrusted_data: bytes, now: float, *, is_image: bool = False) -> list[Command]:
        """The board's answer to a paste: nothing is sent if it is not the last one asked for, late, too long, or not
        what it is said to be."""
        paste = self._paste
        if paste is None or paste[0] != number:
            return []
        self._paste = None
        if now >= paste[2]:
            return []
        if is_image:
            return self._deliver_image(paste[1], untrusted_data)
        if len(untrusted_data) > self._limit or not is_text(untrusted_data):
            return [Tell("what was to be pasted is too long for it, or no text; nothing was pasted")]
        return [Send(gui.ClipboardData(paste[1], untrusted_data))]

    def _deliver_image(self, window: int, untrusted_data: bytes) -> list[Command]:
        try:
            image = gui_wire.decode_image(window, untrusted_data)
        except RemoteProtocolError:
            return [Tell("what was to be pasted is no image; nothing was pasted")]
        if image.width * image.height > self._image_limit:
            return [Tell(f"{self._too_large(image)}; nothing was pasted")]
        return [Send(image)]


# --- between qubes -------------------------------------------------------------------------------------------------


def is_before(first: int, second: int) -> bool:
    """Whether a stamp of the display server's 32-bit clock is older than another one."""
    return (first - second) & 0xFFFFFFFF >= 0x80000000


class BoardCommand:
    """Base of all."""


@dataclass(frozen=True)
class Judge(BoardCommand):
    """Ask policy (``qubes.ClipboardPaste``; "ask" counts as allowed: the key was the consent), then tell
    :meth:`Board.judged`."""

    number: int
    source: str
    target: str
    is_image: bool = False


@dataclass(frozen=True)
class Deliver(BoardCommand, Generic[Content]):
    """Give it to the target's process, as the answer to its paste ``number``; it is off the board."""

    target: str
    number: int
    content: Content
    is_image: bool = False


@dataclass(frozen=True)
class Drop(BoardCommand, Generic[Content]):
    """Let go of it; it is off the board."""

    content: Content


@dataclass(frozen=True)
class Notice(BoardCommand):
    """For the desktop's corner."""

    text: str


@dataclass(frozen=True)
class _Held(Generic[Content]):
    source: str
    content: Content
    size: int
    until: float
    is_image: bool = False

    @property
    def what(self) -> str:
        return "the image" if self.is_image else "the text"

    @property
    def amount(self) -> str:
        return f"an image of {self.size} bytes" if self.is_image else f"{self.size} bytes"


@dataclass(frozen=True)
class _Copying:
    source: str
    number: int
    until: float


@dataclass(frozen=True)
class _Pasting:
    target: str
    number: int
    """The target process's."""
    until: float


class Board(Generic[Content]):
    """What all qubes' processes share: at most one text or image, in nobody's reach but the user's keys'."""

    def __init__(self) -> None:
        self._held: _Held[Content] | None = None
        self._copying: _Copying | None = None
        self._pasting: dict[int, _Pasting] = {}
        self._judgements = 0
        self._stamp: int | None = None
        """Of the last key that did something."""

    @property
    def holds(self) -> tuple[str, int] | None:
        """Source and bytes, for the desktop's corner; None: nothing."""
        return None if self._held is None else (self._held.source, self._held.size)

    def _is_late(self, stamp: int) -> bool:
        if self._stamp is not None and is_before(stamp, self._stamp):
            return True
        self._stamp = stamp
        return False

    def _clear(self) -> list[BoardCommand]:
        held, self._held = self._held, None
        self._pasting.clear()
        return [] if held is None else [Drop(held.content)]

    def copy_started(self, source: str, number: int, stamp: int, now: float) -> list[BoardCommand]:
        """The user copies in a window of ``source``."""
        if self._is_late(stamp):
            return []
        self._copying = _Copying(source, number, now + COPY_TIMEOUT)
        return self._clear()

    def copy_offered(
        self, source: str, number: int, content: Content, size: int, now: float, *, is_image: bool = False
    ) -> list[BoardCommand]:
        """What the guest answered."""
        copying = self._copying
        if copying is None or (copying.source, copying.number) != (source, number):
            return [Drop(content)]
        late = self.expire(now)
        if self._copying is None:
            return [Drop(content), *late]
        self._copying = None
        self._held = _Held(source, content, size, now + KEPT, is_image)
        return [Notice(f"{self._held.amount} copied from {source}")]

    def copy_failed(self, source: str, number: int, reason: str) -> list[BoardCommand]:
        """``reason``: the host's words."""
        copying = self._copying
        if copying is None or (copying.source, copying.number) != (source, number):
            return []
        self._copying = None
        return [Notice(f"nothing was copied from {source}: {reason}")]

    def focused(self, qube: str) -> list[BoardCommand]:
        """The user works in that qube now: one that still copies is too late (MC-51)."""
        copying = self._copying
        if copying is None or copying.source == qube:
            return []
        self._copying = None
        return [Notice(f"{copying.source} had not answered yet; nothing was copied")]

    def paste_asked(
        self, target: str, number: int, stamp: int, now: float, *, limit: int = limits.GUI_MAX_CLIPBOARD
    ) -> list[BoardCommand]:
        """The user pastes in a window of ``target``, which takes ``limit`` bytes of text (of an image: what its process
        allows)."""
        if self._is_late(stamp):
            return []
        self._copying = None
        expired = self.expire(now)
        if self._held is None:
            return [*expired, Notice("there is nothing to paste")]
        if self._held.source == target:
            return [Notice(f"{self._held.what} is from {target} itself; paste it there as within any computer")]
        if self._held.size > limit and not self._held.is_image:
            return [Notice(f"the text has {self._held.size} bytes, {target} takes {limit}; nothing was pasted")]
        self._judgements += 1
        # (A key that is pressed again asks again; what the first was for is void.)
        self._pasting = {self._judgements: _Pasting(target, number, now + PASTE_TIMEOUT)}
        return [Judge(self._judgements, self._held.source, target, self._held.is_image)]

    def judged(self, number: int, is_allowed: bool, now: float) -> list[BoardCommand]:  # noqa: FBT001, RUF100 - a fact
        """What policy said about a :class:`Judge`."""
        expired = self.expire(now)
        pasting = self._pasting.pop(number, None)
        held = self._held
        if pasting is None or held is None:
            return expired
        if not is_allowed:
            what = "an image" if held.is_image else "text"
            return [Notice(f"policy does not let {what} go from {held.source} to {pasting.target}")]
        self._held = None
        self._pasting.clear()
        notice = Notice(f"{held.amount} pasted from {held.source} into {pasting.target}; the clipboard is empty")
        return [Deliver(pasting.target, pasting.number, held.content, held.is_image), notice]

    def expire(self, now: float) -> list[BoardCommand]:
        """Wipe what has been there long enough, and give up what takes too long."""
        commands: list[BoardCommand] = []
        copying, held = self._copying, self._held
        if copying is not None and now >= copying.until:
            self._copying = None
            commands.append(Notice(f"{copying.source} took too long; nothing was copied"))
        for number, pasting in tuple(self._pasting.items()):
            if now >= pasting.until:
                del self._pasting[number]
                commands.append(Notice(f"policy could not be asked in time; nothing was pasted into {pasting.target}"))
        if held is not None and now >= held.until:
            commands += [*self._clear(), Notice(f"what was copied from {held.source} is wiped: it was not pasted")]
        return commands

    @property
    def expires_at(self) -> float | None:
        """When to call :meth:`expire`."""
        waits = [pasting.until for pasting in self._pasting.values()]
        waits += [waiting.until for waiting in (self._copying, self._held) if waiting is not None]
        return min(waits, default=None)

    def qube_gone(self, qube: str) -> list[BoardCommand]:
        """Its name may soon be another one's (MC-20)."""
        if self._copying is not None and self._copying.source == qube:
            self._copying = None
        self._pasting = {number: paste for number, paste in self._pasting.items() if paste.target != qube}
        return self._clear() if self._held is not None and self._held.source == qube else []
