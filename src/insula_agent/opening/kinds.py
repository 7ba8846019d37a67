"""What kind of file something is: its MIME type, by its name, by the shared database where there is one.

(freedesktop.org, Shared MIME-info Database: ``globs2`` and ``subclasses``.) Pure but for :func:`read_lines`. In a qube
without the database a few kinds are known, and text is told from other bytes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_DATABASE = 1 << 20
"""Bytes of one of its files; a full one has a tenth."""
MAX_PARENTS = 16
"""Steps from a kind to what it is a kind of."""
TEXT, BYTES = "text/plain", "application/octet-stream"

_FEW = {
    "bmp": "image/bmp", "csv": "text/csv", "doc": "application/msword", "gif": "image/gif", "htm": "text/html",
    "html": "text/html", "jpeg": "image/jpeg", "jpg": "image/jpeg", "json": "application/json", "md": "text/markdown",
    "mp3": "audio/mpeg", "mp4": "video/mp4", "odt": "application/vnd.oasis.opendocument.text", "ogg": "audio/ogg",
    "pdf": "application/pdf", "png": "image/png", "svg": "image/svg+xml", "tar": "application/x-tar", "txt": TEXT,
    "webp": "image/webp", "xml": "application/xml", "zip": "application/zip",
}  # fmt: skip


def read_lines(path: str) -> list[str]:
    """A file of the database; none if it is not there. :raise OSError:"""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_DATABASE).splitlines()
    except FileNotFoundError:
        return []


def by_name(name: str, globs: Iterable[str]) -> str | None:
    """The kind a name has, by lines ``weight:kind:pattern[:flags]``: the weightiest, then longest pattern that fits."""
    best: tuple[int, int, str] = (-1, 0, "")
    folded = name.lower()
    for line in globs:
        parts = line.split(":")
        if line.startswith("#") or len(parts) < 3 or not parts[0].isdigit():
            continue
        pattern, weight = parts[2], int(parts[0])
        # Others than these two shapes are few, and of no kind that a person opens.
        if pattern.startswith("*.") and not any([letter in pattern[1:] for letter in "*?["]):  # noqa: C419
            is_match = folded.endswith(pattern[1:].lower()) if "cs" not in parts[3:] else name.endswith(pattern[1:])
        else:
            is_match = name == pattern
        if is_match and (weight, len(pattern)) > best[:2]:
            best = (weight, len(pattern), parts[1])
    if best[2]:
        return best[2]
    return _FEW.get(folded.rpartition(".")[2]) if "." in folded else None


def by_content(beginning: bytes) -> str:
    """Text or not: text has no NUL and is UTF-8, but for a letter that is cut at its end."""
    if b"\0" in beginning:
        return BYTES
    for cut in range(4):
        try:
            beginning[: len(beginning) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return TEXT
    return BYTES


def with_parents(kind: str, subclasses: Sequence[str]) -> list[str]:
    """A kind, then what it is a kind of, nearest first; whatever is text is plain text at last."""
    parents: dict[str, list[str]] = {}
    for line in subclasses:
        child, _, parent = line.partition(" ")
        if parent:
            parents.setdefault(child, []).append(parent)
    found = [kind]
    for known in found:
        if len(found) > MAX_PARENTS:
            break
        found += [parent for parent in parents.get(known, []) if parent not in found]
    if any([known.startswith("text/") for known in found]) and TEXT not in found:  # noqa: C419
        found.append(TEXT)
    return found
