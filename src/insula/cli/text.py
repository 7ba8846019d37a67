"""Text for people: control characters made visible, sizes, times.

Everything printed by the command line that a guest or another user may have written goes through :func:`visible`
first, so no name, note or log line can move the cursor, change colours or reorder letters on the terminal (MC-103).
"""

from __future__ import annotations

import re

KIB = 1024
_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"([0-9]{1,19})\s*([KMGTP]?)(?:iB|B)?", re.IGNORECASE)
MAX_SIZE_DIGITS = 19
"""Decimal digits of a size on the wire (admin-api §2, volume.Resize)."""

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, line separators, bidirectional controls
    "\ufeff\ufff9-\ufffb"  # byte order mark, interlinear annotation
    "\ud800-\udfff"  # surrogates: bytes that were no UTF-8
    "\U000e0000-\U000e007f"  # tags
    "]"
)
_LINE_PARTS = re.compile(r"\r?([\n\t])")


def visible(untrusted_text: str) -> str:
    """The text with everything that acts on a terminal instead of being read replaced by ``\\xNN``, ``\\uNNNN``."""
    return _UNSAFE.sub(_escape, untrusted_text)


def visible_lines(untrusted_text: str) -> str:
    """As :func:`visible`, but line ends and tabs stay: for notes, help and logs."""
    return "".join(part if part in "\n\t" else visible(part) for part in _LINE_PARTS.split(untrusted_text) if part)


def visible_bytes(untrusted_data: bytes) -> str:
    """Guest output as text: what is not UTF-8 and all control characters but newline and tab as ``\\xNN``."""
    return visible_lines(untrusted_data.decode("utf-8", "backslashreplace"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def size_text(size: int) -> str:
    """``1.5 GiB``: at most three significant digits and a unit."""
    value = float(size)
    for unit in _SIZE_UNITS:
        if abs(value) < KIB or unit == _SIZE_UNITS[-1]:
            break
        value /= KIB
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def parse_size(untrusted_text: str) -> int:
    """``20GiB``, ``20G``, ``512M`` or bytes; units of 1024. :raise ValueError:"""
    match = _SIZE.fullmatch(untrusted_text.strip())
    if match is None:
        raise ValueError(f"not a size: {visible(untrusted_text)!r}; write bytes or a number with K, M, G or T")
    size: int = int(match[1]) * KIB ** " KMGTP".index(match[2].upper() or " ")
    if len(str(size)) > MAX_SIZE_DIGITS:
        raise ValueError(f"size {visible(untrusted_text)!r} is too large")
    return size


def seconds_text(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
