"""What the daemon and a process that shows windows tell each other: msgpack, one message a packet of a pair of sockets.

The process works on what a qube wrote, so it is trusted no further than these types go. What is copied is never in a
message: :class:`CopyOffered` and :class:`Deliver` come with one descriptor (SCM_RIGHTS), a memory file that nobody can
change any more (``clip_file``).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from insula.gui.settings import (
    COPY_KEYS,
    DEFAULT_CLIPBOARD,
    MAX_SEQUENCE,
    MIN_CLIPBOARD,
    PASTE_KEYS,
    WHITE,
    Sequence,
    Settings,
)
from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_MESSAGE = 4096
"""Bytes of a packet."""
MAX_TEXT = 400

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Name = Annotated[str, Meta(min_length=1, max_length=31)]
"""Of a qube."""
Keys = Annotated[str, Meta(min_length=1, max_length=MAX_SEQUENCE)]
"""As :meth:`insula.gui.settings.Sequence.parse` takes them."""
Number = Annotated[int, Meta(ge=1, le=2**53)]
Stamp = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Colour = Annotated[int, Meta(ge=0, le=0xFFFFFF)]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all; the class name is the tag on the wire."""


# --- daemon to process -------------------------------------------------------------------------------------------


class Configure(_Message, frozen=True, tag=True):
    """First message: whose windows, and what it may. With it come the channel to the guest's agent, which is heard from
    then on, and the frame memory."""

    qube: Name
    colour: Colour
    allows_fullscreen: bool = False
    allows_popups: bool = True
    allows_utf8: bool = False
    clipboard_limit: Annotated[int, Meta(ge=MIN_CLIPBOARD, le=limits.GUI_MAX_CLIPBOARD)] = DEFAULT_CLIPBOARD
    background: Colour = WHITE
    copy: Keys = COPY_KEYS
    paste: Keys = PASTE_KEYS
    keyboard: Annotated[str, Meta(max_length=400)] = ""
    is_emulated: bool = False
    """The channel is no agent's but the machine's own screen (``emulated``)."""
    image_limit: Annotated[int, Meta(ge=0, le=limits.GUI_MAX_IMAGE_PIXELS)] = limits.GUI_MAX_IMAGE_PIXELS

    def settings(self) -> Settings:
        """:raise ValueError: keys that cannot be."""
        return Settings(
            self.qube,
            self.colour,
            allows_fullscreen=self.allows_fullscreen,
            allows_popups=self.allows_popups,
            allows_utf8=self.allows_utf8,
            clipboard_limit=self.clipboard_limit,
            image_limit=self.image_limit,
            background=self.background,
            copy=Sequence.parse(self.copy),
            paste=Sequence.parse(self.paste),
            keyboard=self.keyboard,
        )


class Expect(_Message, frozen=True, tag=True):
    """The user has started a program in this qube: its window need not hide behind others."""


class Deliver(_Message, frozen=True, tag=True):
    """What may be pasted, for PasteAsked of that number; with a descriptor."""

    number: Number
    is_image: bool = False


# --- process to daemon -------------------------------------------------------------------------------------------


class Focused(_Message, frozen=True, tag=True):
    """The user works in this qube now."""


class CopyStarted(_Message, frozen=True, tag=True):
    number: Number
    stamp: Stamp


class CopyOffered(_Message, frozen=True, tag=True):
    """With a descriptor."""

    number: Number
    is_image: bool = False
    """Else text."""


class CopyFailed(_Message, frozen=True, tag=True):
    number: Number
    reason: Text


class PasteAsked(_Message, frozen=True, tag=True):
    number: Number
    stamp: Stamp


class Told(_Message, frozen=True, tag=True):
    """For the user."""

    text: Text


class Greeted(_Message, frozen=True, tag=True):
    """The qube's agent has begun to speak, with this process and no other."""


class Ending(_Message, frozen=True, tag=True):
    """Last message, if the process ends by itself."""

    reason: Text


ToGui = Configure | Deliver | Expect
FromGui = Focused | CopyStarted | CopyOffered | CopyFailed | PasteAsked | Told | Greeted | Ending
WITH_DESCRIPTOR = (Deliver, CopyOffered)

_encoder = msgspec.msgpack.Encoder()
_to_gui: msgspec.msgpack.Decoder[ToGui] = msgspec.msgpack.Decoder(ToGui)
_from_gui: msgspec.msgpack.Decoder[FromGui] = msgspec.msgpack.Decoder(FromGui)


def printable(text: str) -> str:
    """Return the text cut to what a :data:`Text` field takes, with anything but printable ASCII replaced."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:MAX_TEXT])


def _check(message: ToGui | FromGui, error: type[LocalProtocolError | RemoteProtocolError]) -> None:
    for name in message.__struct_fields__:
        field = getattr(message, name)
        if isinstance(field, str) and field != printable(field):
            raise error(f"{name} is not a short printable text")


def encode(message: ToGui | FromGui) -> bytes:
    """:raise LocalProtocolError: the other side would refuse it."""
    _check(message, LocalProtocolError)
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(f"control message of {len(data)} bytes")
    return data


def decode_to_gui(data: bytes) -> ToGui:
    """:raise RemoteProtocolError: not a message of the daemon."""
    try:
        message = _to_gui.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"control message: {error}") from error
    _check(message, RemoteProtocolError)
    return message


def decode_from_gui(untrusted_data: bytes) -> FromGui:
    """:raise RemoteProtocolError: not a message of such a process, or a field out of bounds."""
    try:
        message = _from_gui.decode(untrusted_data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"control message: {type(error).__name__}") from error
    _check(message, RemoteProtocolError)
    return message
