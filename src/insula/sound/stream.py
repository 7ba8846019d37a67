"""A stream of one qube at the sound server, decided: what comes from either side goes in, what is to be sent comes out.

Steps are ``AUTH`` (:func:`greeting`), ``SET_CLIENT_NAME``, ``CREATE_…_STREAM``; each waits for the answer to the last.
:class:`Playback` then passes on the server's requests as grants (:mod:`insula_proto.sound`) and samples as they come;
:class:`Recording` passes on samples as far as they are granted, and throws away what is not.

What a qube sends is counted, cut into whole frames and never looked at. The stream's name is the qube's.
"""

from __future__ import annotations

from insula.sound import native
from insula.sound.native import Command, Decoder, Long, Positions, Sent, Spec, Volume
from insula_proto import sound
from insula_proto.errors import RemoteProtocolError
from insula_proto.sound import AHEAD, BLOCK, CHANNELS, FRAME, RATE

LONGEST = 4 * AHEAD * BLOCK
"""Bytes the server may keep of a stream, at most."""
_GREETING_TAG = 1
_SPEC = Spec(CHANNELS, RATE)
_POSITIONS = Positions((1, 2))
_VOLUME = Volume((native.FULL,) * CHANNELS)
_UNCHANGED = (False,) * 7
"""Nothing of the stream is to be as the sink is (its format, channels), and it may be moved."""


class StreamRefused(Exception):
    """The sound server does not want it, or not any more."""


def greeting(cookie: bytes) -> bytes:
    """The first step, which the daemon takes: the server goes by the user who sends it, or by the cookie.

    The process that goes on has neither.
    """
    proof = Long(cookie.ljust(native.COOKIE_SIZE, b"\0"))
    return native.command(native.AUTH, _GREETING_TAG, native.VERSION, proof)


class Stream:
    """Base of both: the steps until the stream is there."""

    killed = -1
    """The command with which a server ends it."""

    def __init__(self, qube: str) -> None:
        self._qube = qube
        self._decoder = Decoder()
        self._to_server = bytearray()
        self._to_qube = bytearray()
        self._awaited = native.AUTH
        self._tag = _GREETING_TAG
        self._channel: int | None = None
        self.is_over = False
        """Nothing more is to be done, once what is to be sent has been."""

    @property
    def room(self) -> int:
        """Bytes to read from the qube at present, at most."""
        return 0

    def take_for_server(self) -> bytes:
        data = bytes(self._to_server)
        self._to_server.clear()
        return data

    def take_for_qube(self) -> bytes:
        data = bytes(self._to_qube)
        self._to_qube.clear()
        return data

    def qube_data(self, untrusted_data: bytes) -> None:
        """At most ``room`` bytes came from the qube."""
        raise NotImplementedError

    def qube_end(self) -> None:
        """The qube sends no more."""
        self.is_over = True

    def server_data(self, data: bytes) -> None:
        """:raise StreamRefused: it is over. :raise RemoteProtocolError: this is no sound server."""
        for packet in self._decoder.receive(data):
            if isinstance(packet, Command):
                self._command(packet)
            elif packet.channel == self._channel:
                self._samples(packet.data)

    def _ask(self, number: int, *values: Sent) -> None:
        self._awaited = number
        self._tag += 1
        self._to_server += native.command(number, self._tag, *values)

    def _command(self, command: Command) -> None:
        if command.number == native.ERROR and command.tag == self._tag:
            raise StreamRefused(f"the sound server refuses step {self._awaited}, error {_number(command, 0)}")
        if command.number == native.REPLY and command.tag == self._tag:
            self._answered(self._awaited, command)
        elif command.number == self.killed:
            raise StreamRefused("the sound server ended the stream")
        elif command.number == native.REQUEST and self._channel is not None and _number(command, 0) == self._channel:
            self._requested(_number(command, 1))

    def _answered(self, step: int, command: Command) -> None:
        if step == native.AUTH:
            self._ask(native.SET_CLIENT_NAME, self._properties())
        elif step == native.SET_CLIENT_NAME:
            self._create()
        else:
            self._channel = _number(command, 0)
            self._created(command)

    def _properties(self) -> dict[str, str]:
        # What the mixer shows, and what the server remembers the volume by.
        return {"application.name": self._qube, "media.name": self._qube, "application.icon_name": "computer"}

    def _create(self) -> None:
        raise NotImplementedError

    def _created(self, command: Command) -> None:
        raise NotImplementedError

    def _requested(self, size: int) -> None:
        """The server has room for more samples."""

    def _samples(self, data: bytes) -> None:
        """The server has recorded some."""


class Playback(Stream):
    killed = native.PLAYBACK_STREAM_KILLED

    def __init__(self, qube: str) -> None:
        super().__init__(qube)
        self._wanted = 0
        """Bytes that the server has asked for and nobody was granted."""
        self._granted = 0
        """Bytes that the qube was granted and has not sent."""
        self._part = b""
        """The beginning of a frame."""
        self._is_ended = False

    @property
    def room(self) -> int:
        return 0 if self._is_ended else self._granted

    def _create(self) -> None:
        whole = AHEAD * BLOCK
        self._ask(
            native.CREATE_PLAYBACK_STREAM,
            _SPEC, _POSITIONS, native.NO_INDEX, None,
            # At most; not corked; wanted; from which on it is played; asked for at a time; alone; its volume…
            LONGEST, False, whole, whole // 2, BLOCK, 0, _VOLUME,
            *_UNCHANGED,
            # …not muted, and the figure wanted is that of the whole way…
            False, True, self._properties(),
            # …the volume and being muted are as the user left them; it may wait for its device.
            False, False, False, False, False,
        )  # fmt: skip

    def _created(self, command: Command) -> None:
        self._requested(_number(command, 2))

    def _requested(self, size: int) -> None:
        if self._is_ended:
            return
        # A server that asks for more than it takes is not believed: what is open stays bounded.
        self._wanted = min(self._wanted + size, AHEAD * BLOCK - self._granted)
        while self._wanted >= BLOCK:
            self._wanted -= BLOCK
            self._granted += BLOCK
            self._to_qube += sound.GRANT

    def qube_data(self, untrusted_data: bytes) -> None:
        assert len(untrusted_data) <= self._granted
        self._granted -= len(untrusted_data)
        untrusted_data = self._part + untrusted_data
        whole = len(untrusted_data) // FRAME * FRAME
        self._part = untrusted_data[whole:]
        if whole:
            assert self._channel is not None
            self._to_server += native.samples(self._channel, untrusted_data[:whole])

    def qube_end(self) -> None:
        """What it has sent is heard first, however little that is."""
        if self._channel is None:
            self.is_over = True
        elif not self._is_ended:
            self._is_ended = True
            self._ask(native.DRAIN_PLAYBACK_STREAM, self._channel)

    def _answered(self, step: int, command: Command) -> None:
        if step == native.DRAIN_PLAYBACK_STREAM:
            self.is_over = True
        else:
            super()._answered(step, command)


class Recording(Stream):
    killed = native.RECORD_STREAM_KILLED

    def __init__(self, qube: str) -> None:
        super().__init__(qube)
        self._grants = sound.Grants()
        self._part = b""

    @property
    def room(self) -> int:
        return AHEAD

    def _create(self) -> None:
        self._ask(
            native.CREATE_RECORD_STREAM,
            _SPEC, _POSITIONS, native.NO_INDEX, None,
            # At most; not corked; at a time.
            AHEAD * BLOCK, False, BLOCK,
            *_UNCHANGED,
            # Not only its peaks; the figure is that of the whole way; of no other stream alone; it may wait.
            False, True, self._properties(), native.NO_INDEX,
            False, False, False,
        )  # fmt: skip

    def _created(self, command: Command) -> None:
        """Samples follow by themselves."""

    def qube_data(self, untrusted_data: bytes) -> None:
        self._grants.receive(untrusted_data)

    def _samples(self, data: bytes) -> None:
        # What nobody waits for is not kept: what comes later is what is said then.
        data = data[: min(len(data), self._grants.room) // FRAME * FRAME]
        self._grants.sent(len(data))
        self._to_qube += data


def _number(command: Command, index: int) -> int:
    """:raise RemoteProtocolError: it has no such number."""
    value = command.values[index] if index < len(command.values) else None
    if type(value) is not int:
        raise RemoteProtocolError(f"command {command.number} of the sound server has no number {index}")
    return value
