"""Colour labels: how much a person trusts a qube, as a name and the colour drawn around its windows (admin-api §2).

The eight built-in labels have fixed names, colours and indices on every system; labels made by the user get
indices above them. Labels are values; which ones exist is part of :class:`insula.model.system.System`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from insula.model.errors import QubesInvalidLabelError, QubesInvalidLabelValueError, QubesLabelNotFoundError

MAX_LABEL_NAME = 64
"""Characters; ours, the published interface names no limit."""
MAX_BUILTIN_INDEX = 8
"""Labels up to this index cannot be removed (admin-api §2, Labels)."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_COLOR = re.compile(r"0x[0-9A-Fa-f]{6}")
_INDEX_REFERENCE = re.compile(r"label-([0-9]{1,9})")


@dataclass(frozen=True)
class Label:
    name: str
    color: int
    """``0xRRGGBB``."""
    index: int
    """1 and up, unique."""

    @property
    def color_text(self) -> str:
        """The colour as clients read it: ``0xcc0000``."""
        return f"0x{self.color:06x}"

    @property
    def is_builtin(self) -> bool:
        return self.index <= MAX_BUILTIN_INDEX


BUILTIN_LABELS: Mapping[str, Label] = MappingProxyType(
    {
        label.name: label
        for label in (
            Label("red", 0xCC0000, 1),
            Label("orange", 0xF57900, 2),
            Label("yellow", 0xEDD400, 3),
            Label("green", 0x73D216, 4),
            Label("gray", 0x555555, 5),
            Label("blue", 0x3465A4, 6),
            Label("purple", 0x75507B, 7),
            Label("black", 0x000000, 8),
        )
    }
)


def parse_label_name(untrusted_name: str) -> str:
    """Return the name if a new label may be called so.

    :raise QubesInvalidLabelError: wrong length or alphabet, or only digits (it would read as an index).
    """
    if not 1 <= len(untrusted_name) <= MAX_LABEL_NAME:
        raise QubesInvalidLabelError(
            f"A label name has 1 to {MAX_LABEL_NAME} characters, this one {len(untrusted_name)}"
        )
    if not _LABEL_NAME.fullmatch(untrusted_name):
        raise QubesInvalidLabelError(f"Label name {untrusted_name!a} may contain only A-Z a-z 0-9 _ . -")
    if untrusted_name.isdigit():
        raise QubesInvalidLabelError(f"Label name {untrusted_name!r} would be taken for an index")
    return untrusted_name


def parse_label_color(untrusted_color: str) -> int:
    """Parse ``0xRRGGBB``. :raise QubesInvalidLabelValueError:"""
    if not _COLOR.fullmatch(untrusted_color):
        raise QubesInvalidLabelValueError(f"A label colour is written 0xRRGGBB, not {untrusted_color[:16]!a}")
    return int(untrusted_color, 16)


def parse_label_reference(untrusted_reference: str, labels: Mapping[str, Label]) -> Label:
    """Find a label by name or as ``label-INDEX`` (admin-api §4, property ``label``).

    :raise QubesLabelNotFoundError: there is no such label.
    """
    if untrusted_reference in labels:
        return labels[untrusted_reference]
    by_index = _INDEX_REFERENCE.fullmatch(untrusted_reference)
    if by_index:
        for label in labels.values():
            if label.index == int(by_index[1]):
                return label
    raise QubesLabelNotFoundError(f"No such label: {untrusted_reference[:MAX_LABEL_NAME]!a}")


def free_index(labels: Iterable[Label]) -> int:
    """Index of the next label made: one above all there are, built-in ones included."""
    return max([MAX_BUILTIN_INDEX, *(label.index for label in labels)]) + 1
