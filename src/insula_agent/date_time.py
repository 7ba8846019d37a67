"""``qubes.SetDateTime``: set the clock to a line like ``2026-01-31T16:10:43+00:00``, unless it is right within 2 s.

The line comes from the host or from the qube that knows the time; policy says who may. It is checked all the same:
a clock that was set to nonsense takes every certificate with it.
"""

from __future__ import annotations

import os
import sys
import time

TOLERANCE_S = 2
MAX_LINE = 64
"""Bytes; the published line has 26 with its newline."""
FIRST_YEAR, LAST_YEAR = 2024, 2199
"""Before that nothing of this was written; after that 64 bits of file systems' nanoseconds end."""
_SHAPE = "dddd-dd-ddTdd:dd:ddZdd:dd"
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse(untrusted_line: bytes) -> int:
    """Seconds since the epoch. An offset other than zero, with or without its colon, is understood too.

    :raise ValueError: not such a line, or no time that can be.
    """
    text = untrusted_line.decode("ascii", "replace").rstrip("\n")
    if len(text) == len(_SHAPE) - 1:
        text = f"{text[:22]}:{text[22:]}"
    if len(text) != len(_SHAPE) or not all(map(_fits, text, _SHAPE)):
        raise ValueError(f"not a time: {text[:MAX_LINE]!a}")
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
    ahead = (int(text[20:22]) * 60 + int(text[23:25])) * (60 if text[19] == "+" else -60)
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (FIRST_YEAR <= year <= LAST_YEAR and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 61):
        raise ValueError(f"no such time: {text!a}")
    if not 1 <= day <= _MONTH_DAYS[month - 1] + (is_leap and month == 2) or int(text[20:22]) > 14:
        raise ValueError(f"no such time: {text!a}")
    days = (year - 1970) * 365 + (year - 1969) // 4 - (year - 1901) // 100 + (year - 1601) // 400
    days += sum(_MONTH_DAYS[: month - 1]) + (is_leap and month > 2) + day - 1
    return days * 86400 + hour * 3600 + minute * 60 + second - ahead


def _fits(letter: str, shape: str) -> bool:
    if shape == "d":
        return letter in "0123456789"
    return letter in "+-" if shape == "Z" else letter == shape


def is_worth_setting(wanted: int, now: float) -> bool:
    return abs(wanted - now) > TOLERANCE_S


def main() -> int:
    try:
        wanted = parse(os.read(0, MAX_LINE))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if is_worth_setting(wanted, time.time()):
        try:
            time.clock_settime(time.CLOCK_REALTIME, wanted)
        except PermissionError as error:
            sys.stderr.write(f"the clock is root's to set: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
