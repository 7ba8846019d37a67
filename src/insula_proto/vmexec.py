"""The argument of ``qubes.VMExec``: a command line as one service argument (reference: agent-services, §2).

Arguments are joined by ``+``. Bytes ``A-Z a-z 0-9 . _`` stand for themselves, ``-`` is ``--``, any other byte is
``-HH`` with two upper-case hex digits. The code is byte for byte, so every argument vector has exactly one form.
"""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._")
_HEX = b"0123456789ABCDEF"
_ESCAPE = ord("-")
_FORMS = [b"--" if byte == _ESCAPE else (bytes([byte]) if byte in _PLAIN else b"-%02X" % byte) for byte in range(256)]


def encode(arguments: Sequence[bytes]) -> bytes:
    """Return the service argument for a command; ``arguments[0]`` is the program.

    :raise LocalProtocolError: no program, a NUL, or longer than :data:`limits.VMEXEC_MAX_ARGUMENT`.
    """
    if not arguments or any([b"\0" in argument for argument in arguments]):  # noqa: C419 - no generator frames
        raise LocalProtocolError("a command is at least a program, without NUL")
    encoded = b"+".join([b"".join([_FORMS[byte] for byte in argument]) for argument in arguments])
    if len(encoded) > limits.VMEXEC_MAX_ARGUMENT:
        raise LocalProtocolError(f"the command is too long: {len(encoded)} bytes encoded")
    return encoded


def _decode_one(untrusted_item: bytes) -> bytes:
    decoded = bytearray()
    position = 0
    while position < len(untrusted_item):
        byte = untrusted_item[position]
        if byte in _PLAIN:
            decoded.append(byte)
            position += 1
        elif untrusted_item[position : position + 2] == b"--":
            decoded.append(_ESCAPE)
            position += 2
        else:
            digits = untrusted_item[position + 1 : position + 3]
            if byte != _ESCAPE or len(digits) != 2 or digits[0] not in _HEX or digits[1] not in _HEX:
                raise RemoteProtocolError(f"byte {byte:#x} in a VMExec argument")
            value = int(digits, 16)
            if value == 0:
                raise RemoteProtocolError("NUL in a VMExec argument")
            decoded.append(value)
            position += 3
    return bytes(decoded)


def decode(untrusted_argument: bytes) -> list[bytes]:
    """Return the command; the first item is the program. An empty argument is an empty item.

    :raise RemoteProtocolError: a character outside the code, a stray ``-``, lower-case hex, NUL, or too long.
    """
    if len(untrusted_argument) > limits.VMEXEC_MAX_ARGUMENT:
        raise RemoteProtocolError(f"VMExec argument of {len(untrusted_argument)} bytes")
    return [_decode_one(item) for item in untrusted_argument.split(b"+")]
