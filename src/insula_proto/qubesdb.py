"""QubesDB: the few keys a qube is told, and those it may tell (published protocol, vchan port 111).

A message is a header of 72 bytes (type u8, path of 64 bytes padded with NUL, 3 bytes of padding, length u32
little-endian) and that many bytes of value. A qube that connects asks MULTIREAD of the empty path and gets
RESP_MULTIREAD for every key and one with an empty path as the end; from then on WRITE and RM go both ways, each
answered by RESP_OK or an error, in order.

:class:`KeyClient` is the qube's end, :class:`KeyServer` the host's. Both sans I/O; output is returned by the
methods or collected for :meth:`KeyServer.take_output`.
"""

from __future__ import annotations

import struct

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 111

READ, WRITE, MULTIREAD, LIST, RM, WATCH, UNWATCH = range(7)
RESP_OK, RESP_ERROR_NOENT, RESP_ERROR, RESP_READ, RESP_MULTIREAD, RESP_LIST, RESP_WATCH = range(7, 14)

_HEADER = struct.Struct("<B64s3xI")
_PATH_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/_.:@+=-")

GUEST_MAY_WRITE = (
    "/features-request/",
    "/qubes-tools/",
    "/qubes-block-devices",
    "/qubes-usb-devices",
    "/dns/",
    "/qubes-firewall-handled/",
    "/qubes-netvm-external-ip",
)
"""Keys written by qubes (agent-services §11); everything else belongs to the host."""


class KeyMessage(Value):
    """One message: its type, a path (maybe empty) and a value."""

    __slots__ = ("kind", "path", "value")
    kind: int
    path: str
    value: bytes

    def __init__(self, kind: int, path: str = "", value: bytes = b"") -> None:
        self._fill(kind=kind, path=path, value=value)


class KeyWritten(Value):
    """The peer wrote a key."""

    __slots__ = ("path", "value")
    path: str
    value: bytes

    def __init__(self, path: str, value: bytes) -> None:
        self._fill(path=path, value=value)


class KeyRemoved(Value):
    """The peer removed a key."""

    __slots__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        self._fill(path=path)


class AllKeysRead(Value):
    """The first answer is complete: :attr:`KeyClient.keys` holds everything the host has."""

    __slots__ = ()


def is_valid_path(path: str) -> bool:
    """Whether a key may be called so: ``/`` first, letters of the alphabet, no empty, ``.`` or ``..`` part."""
    if not 1 < len(path) <= limits.QUBESDB_MAX_PATH or not path.startswith("/") or not path.isascii():
        return False
    return _PATH_ALPHABET.issuperset(path.encode()) and not {"", ".", ".."}.intersection(path[1:].split("/"))


def guest_may_write(path: str) -> bool:
    """Whether a qube may set this (valid) key. A prefix without final ``/`` covers the key itself and those below."""
    for prefix in GUEST_MAY_WRITE:
        if path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/"):
            return True
    return False


def encode(message: KeyMessage) -> bytes:
    """:raise LocalProtocolError: path or value does not fit."""
    path = message.path.encode("ascii", "replace")
    if len(path) > limits.QUBESDB_MAX_PATH or b"\0" in path or not message.path.isascii():
        raise LocalProtocolError(f"path {message.path!r}")
    if len(message.value) > limits.QUBESDB_MAX_VALUE or not 0 <= message.kind <= RESP_WATCH:
        raise LocalProtocolError(f"message of type {message.kind} with {len(message.value)} bytes")
    return _HEADER.pack(message.kind, path, len(message.value)) + message.value


class Decoder:
    """Splits bytes into messages; takes any split, holds at most one message."""

    def __init__(self) -> None:
        self._partial = bytearray()

    @property
    def is_between_messages(self) -> bool:
        return not self._partial

    def receive(self, untrusted_data: bytes) -> list[KeyMessage]:
        """:raise RemoteProtocolError: unknown type, bad path, or value over 3072 bytes."""
        messages: list[KeyMessage] = []
        position = 0
        end = len(untrusted_data)
        partial = self._partial
        wanted = self._wanted()
        while position < end:
            taken = untrusted_data[position : position + wanted - len(partial)]
            partial += taken
            position += len(taken)
            wanted = self._wanted()
            if len(partial) == wanted:
                messages.append(self._decode())
                partial.clear()
                wanted = _HEADER.size
        return messages

    def _wanted(self) -> int:
        """Bytes the present message has, as far as is known; the header is checked once it is there."""
        if len(self._partial) < _HEADER.size:
            return _HEADER.size
        kind, _, length = _HEADER.unpack_from(self._partial)
        if kind > RESP_WATCH or length > limits.QUBESDB_MAX_VALUE:
            raise RemoteProtocolError(f"QubesDB message of type {kind} with {length} bytes")
        return _HEADER.size + int(length)

    def _decode(self) -> KeyMessage:
        kind, untrusted_path, _ = _HEADER.unpack_from(self._partial)
        path, nul, rest = untrusted_path.partition(b"\0")
        if not nul or rest.strip(b"\0") or not path.isascii():
            raise RemoteProtocolError("QubesDB path not ASCII padded with NUL")
        return KeyMessage(kind, path.decode("ascii"), bytes(self._partial[_HEADER.size :]))


class _Peer:
    """What both ends share: requests of ours that are still to be answered, in order."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._unanswered = 0

    @property
    def is_between_messages(self) -> bool:
        return self._decoder.is_between_messages

    def write(self, path: str, value: bytes) -> bytes:
        """Return the WRITE message that tells the peer."""
        self._unanswered += 1
        return encode(KeyMessage(WRITE, path, value))

    def remove(self, path: str) -> bytes:
        """Return the RM message that tells the peer."""
        self._unanswered += 1
        return encode(KeyMessage(RM, path))

    def _answered(self, message: KeyMessage) -> None:
        if not self._unanswered:
            raise RemoteProtocolError(f"answer of type {message.kind} to nothing")
        self._unanswered -= 1


class KeyClient(_Peer):
    """The qube's end. Send :meth:`read_all` first; its view of all keys is :attr:`keys`."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, bytes] = {}
        self._is_complete = False
        self._output: list[bytes] = []

    def read_all(self) -> bytes:
        return encode(KeyMessage(MULTIREAD))

    def receive(self, untrusted_data: bytes) -> list[AllKeysRead | KeyWritten | KeyRemoved]:
        events: list[AllKeysRead | KeyWritten | KeyRemoved] = []
        for message in self._decoder.receive(untrusted_data):
            if not self._is_complete:
                self._first_answer(message, events)
            elif message.kind == WRITE:
                self.keys[message.path] = message.value
                self._output.append(encode(KeyMessage(RESP_OK, message.path)))
                events.append(KeyWritten(message.path, message.value))
            elif message.kind == RM:
                self.keys.pop(message.path, None)
                self._output.append(encode(KeyMessage(RESP_OK, message.path)))
                events.append(KeyRemoved(message.path))
            elif message.kind in (RESP_OK, RESP_ERROR, RESP_ERROR_NOENT):
                self._answered(message)
            else:
                raise RemoteProtocolError(f"QubesDB message of type {message.kind} from the host")
            if len(self.keys) > limits.QUBESDB_MAX_KEYS:
                raise RemoteProtocolError("too many keys")
        return events

    def take_output(self) -> bytes:
        """Return the answers to be sent, and forget them."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def _first_answer(self, message: KeyMessage, events: list[AllKeysRead | KeyWritten | KeyRemoved]) -> None:
        if message.kind != RESP_MULTIREAD:
            raise RemoteProtocolError(f"QubesDB message of type {message.kind} before all keys are read")
        if message.path:
            self.keys[message.path] = message.value
        else:
            self._is_complete = True
            events.append(AllKeysRead())


class KeyServer(_Peer):
    """The host's end. ``keys`` (owned by the caller, changed here when the qube removes or writes one) is what the
    qube may know; ``may_write(path, value)`` is asked before a write by the qube is taken.
    """

    def __init__(self, keys: dict[str, bytes], may_write: Callable[[str, bytes], bool]) -> None:
        super().__init__()
        self._keys = keys
        self._may_write = may_write
        self._output: list[bytes] = []
        self._output_size = 0
        self.is_synchronised = False
        """The qube has read everything; from now on it is told of changes."""

    def take_output(self) -> bytes:
        """Return the answers to be sent, and forget them."""
        output = b"".join(self._output)
        self._output.clear()
        self._output_size = 0
        return output

    def receive(self, untrusted_data: bytes) -> list[KeyWritten | KeyRemoved]:
        """Handle the qube's requests; return what it changed (paths checked, values at most 3072 bytes of anything)."""
        events: list[KeyWritten | KeyRemoved] = []
        for message in self._decoder.receive(untrusted_data):
            self._handle(message, events)
        return events

    def _respond(self, kind: int, path: str = "", value: bytes = b"") -> None:
        if self._output_size > limits.QUBESDB_MAX_OUTPUT:
            raise RemoteProtocolError("the qube asks for more keys than it reads")
        self._output.append(encode(KeyMessage(kind, path, value)))
        self._output_size += len(self._output[-1])

    def _handle(self, message: KeyMessage, events: list[KeyWritten | KeyRemoved]) -> None:
        path = message.path
        if message.kind in (RESP_OK, RESP_ERROR, RESP_ERROR_NOENT):
            self._answered(message)
        elif message.kind == MULTIREAD:
            for key in sorted(self._keys):
                if key.startswith(path):
                    self._respond(RESP_MULTIREAD, key, self._keys[key])
            self._respond(RESP_MULTIREAD)
            self.is_synchronised = True
        elif message.kind == READ:
            if path in self._keys:
                self._respond(RESP_READ, path, self._keys[path])
            else:
                self._respond(RESP_ERROR_NOENT, path)
        elif message.kind == WRITE:
            self._written(path, message.value, events)
        elif message.kind == RM:
            self._removed(path, events)
        else:
            raise RemoteProtocolError(f"QubesDB message of type {message.kind} from a qube")

    def _written(self, path: str, value: bytes, events: list[KeyWritten | KeyRemoved]) -> None:
        has_room = path in self._keys or len(self._keys) < limits.QUBESDB_MAX_KEYS
        if is_valid_path(path) and guest_may_write(path) and has_room and self._may_write(path, value):
            self._keys[path] = value
            self._respond(RESP_OK, path)
            events.append(KeyWritten(path, value))
        else:
            self._respond(RESP_ERROR, path)

    def _removed(self, path: str, events: list[KeyWritten | KeyRemoved]) -> None:
        """A path ending in ``/`` removes what is below it; a qube may forget host keys (the random seed) too."""
        gone = [key for key in self._keys if key == path or (path.endswith("/") and key.startswith(path))]
        if not gone:
            self._respond(RESP_ERROR_NOENT, path)
            return
        for key in gone:
            del self._keys[key]
            events.append(KeyRemoved(key))
        self._respond(RESP_OK, path)
