"""The mark on windows of Insula itself: a picture and two words that no qube knows (MC-40).

A qube can draw any window *inside* its frame, a perfect copy of our dialog included. What it cannot draw is what it
does not know: the mark is made at random on each computer, kept in a file of the user alone, given to no qube, and
shown by nothing but dialogs of the host. Whoever sees a question without the mark they know sees a forgery.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

SIDE = 5
"""Cells of the picture in each direction."""
SEED_BYTES = 8
_HALF = (SIDE + 1) // 2
_SEED = re.compile(rf"[0-9a-f]{{{2 * SEED_BYTES}}}\n?")

_FIRST = (
    "amber azure brave brisk calm clear clever coral crisp dapper eager early fancy fleet fond gentle "
    "glad golden grand happy hardy honest humble jolly keen kind light lively loyal lucid lucky mellow "
    "merry mild misty modest neat nimble noble olive patient plain polite proud quick quiet ready rosy "
    "round royal rustic sandy silent silver simple sleek smooth snowy solid steady sunny swift tidy warm"
)
_SECOND = (
    "acorn anchor apple arrow badger basket beacon beaver birch bridge button candle canoe castle cedar cherry "
    "clover comet compass cricket falcon feather fiddle finch garden ginger glacier hammer harbor hazel heron island "
    "jasmine kettle ladder lantern lemon maple marble meadow mitten orchard otter parrot pebble pepper piano pigeon "
    "pillow pocket puffin raven ribbon river saddle sparrow spruce teapot thimble tulip violet walnut willow window"
)


@dataclass(frozen=True)
class HostMark:
    words: str
    cells: tuple[tuple[bool, ...], ...]
    """Rows; the same from the left and from the right, which eyes remember well."""


def mark_of(seed: bytes) -> HostMark:
    """:raise ValueError: not :data:`SEED_BYTES` long."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a mark is made of {SEED_BYTES} bytes, not {len(seed)}")
    first, second = _FIRST.split(), _SECOND.split()
    words = f"{first[seed[0] % len(first)]} {second[seed[1] % len(second)]}"
    bits = int.from_bytes(seed[2:], "big")
    rows = []
    for row in range(SIDE):
        half = [bool(bits >> (row * _HALF + column) & 1) for column in range(_HALF)]
        rows.append((*half, *reversed(half[: SIDE - _HALF])))
    return HostMark(words, tuple(rows))


def load_mark(path: Path) -> HostMark:
    """The mark of this computer, made the first time. Two programs at once make one.

    :raise OSError:
    :raise ValueError: the file holds something else. It is not replaced: a new mark nobody knows.
    """
    if not path.exists():
        _make(path)
    text = path.read_text(encoding="ascii", errors="replace")
    if not _SEED.fullmatch(text):
        raise ValueError(f"{path} does not hold a mark; remove it to have a new one")
    return mark_of(bytes.fromhex(text.strip()))


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SEED_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # the other one was first
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
