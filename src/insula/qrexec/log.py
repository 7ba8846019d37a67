"""Lines for people on stderr, which in a daemon is its log. A qube can cause them, so a second has a limit (MC-103)."""

from __future__ import annotations

import os
import time

LINES_PER_SECOND = 50
_MAX_LINE = 2000

_program = "qrexec"
_second = 0
_lines = 0
_dropped = 0


def name_program(name: str) -> None:
    """Set what lines begin with."""
    global _program  # noqa: PLW0603 - one process, one name
    _program = name


def say(text: str) -> None:
    """Write a line; control characters in it are escaped."""
    global _second, _lines, _dropped  # noqa: PLW0603 - one process, one log
    second = int(time.monotonic())
    if second != _second:
        if _dropped:
            _write(f"{_dropped} more lines")
        _second, _lines, _dropped = second, 0, 0
    if _lines >= LINES_PER_SECOND:
        _dropped += 1
        return
    _lines += 1
    _write(text)


def _write(text: str) -> None:
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:_MAX_LINE])
    data = f"{_program}: {line}\n".encode("utf-8", "backslashreplace")
    try:
        os.write(2, data)
    except OSError:
        # Nobody reads it; that is no reason to stop.
        return
