"""Names of files on their way between qubes: which paths and link targets a transfer may have, which letters are shown.

Three questions, all pure (reference: agent-services, §3):

* does a path stay inside (:func:`check_path`, MC-01) and a link's target inside its top folder (:func:`check_target`);
* has a name only letters that cannot deceive who reads them (:func:`is_displayable`, MC-05): ASCII without controls,
  and letters, digits, punctuation and mathematics of scripts that are written from left to right, letter by letter. Not
  combining marks, nothing invisible, no private use, no symbols that are pictures. Whoever wants to send other names
  asks for ``qubes.Filecopy+allow-all-names``;
* how a name from elsewhere is shown (:func:`shown`): every byte printable ASCII.
"""

from __future__ import annotations

import errno

from insula_proto import limits
from insula_proto.errors import RemoteProtocolError

PRINTABLE = bytes(range(0x20, 0x7F))

_BLOCKS = (
    (0x00A1, 0x02FF),  # Latin
    (0x0370, 0x03E1),  # Greek
    (0x03F0, 0x052F),  # Greek, Cyrillic
    (0x1100, 0x11FF),  # Hangul
    (0x1C80, 0x1C8F),  # Cyrillic
    (0x1D00, 0x1DBF),  # phonetic
    (0x1E00, 0x1FFF),  # Latin, Greek
    (0x2010, 0x205E),  # punctuation
    (0x2070, 0x2BFF),  # digits, currencies, mathematics
    (0x2C60, 0x2C7F),  # Latin
    (0x2E00, 0x2E7F),  # punctuation
    (0x3001, 0x9FFF),  # punctuation, Kana, Bopomofo, Hangul, Han
    (0xA640, 0xA69F),  # Cyrillic
    (0xA700, 0xA7FF),  # Latin
    (0xA960, 0xA97F),  # Hangul
    (0xAB30, 0xAB6F),  # Latin
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFB06),  # Han, Latin
    (0xFE10, 0xFE6F),  # forms of punctuation
    (0xFF01, 0xFFEF),  # half and full width
    (0x1AFF0, 0x1B16F),  # Kana
    (0x1D360, 0x1D7FF),  # digits, mathematics
    (0x1F100, 0x1F2FF),  # digits
    (0x20000, 0x323AF),  # Han
)
"""Blocks of Unicode whose letters are taken; what a block holds besides is sorted out by category and direction."""

_CATEGORIES = frozenset(
    ["Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Pd", "Ps", "Pe", "Pc", "Po", "Pi", "Pf", "Sm", "Sc"]
)
_DIRECTIONS = frozenset(["L", "EN", "ES", "ET", "CS", "ON", "WS"])


class NameRefused(RemoteProtocolError):
    """A path or target that a transfer may not have; ``code`` is the errno of the published answer."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def shown(untrusted_name: bytes) -> str:
    """A name as it may be shown to people and terminals."""
    return "".join([chr(byte) if 0x20 <= byte <= 0x7E else "_" for byte in untrusted_name])


def _is_displayable_letter(letter: str) -> bool:
    import unicodedata  # noqa: PLC0415 - most names are ASCII

    code = ord(letter)
    if code < 0x7F:
        return code >= 0x20
    for first, last in _BLOCKS:
        if first <= code <= last:
            return unicodedata.category(letter) in _CATEGORIES and unicodedata.bidirectional(letter) in _DIRECTIONS
    return False


def is_displayable(name: bytes) -> bool:
    """Whether a name is valid UTF-8 of letters that may be shown as they are."""
    if not name.translate(None, PRINTABLE):
        return True
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all([_is_displayable_letter(letter) for letter in text])  # noqa: C419 - no generator frames


def check_path(untrusted_path: bytes, *, all_names: bool) -> tuple[bytes, ...]:
    """Return the parts of a path that stays below where it begins.

    :raise NameRefused: empty, absolute, with an empty, ``.`` or ``..`` part, a NUL, or (unless ``all_names``) a letter
        that is not displayable: EILSEQ. A part of more bytes than a file system stores: ENAMETOOLONG.
    """
    parts = tuple(untrusted_path.split(b"/"))
    for part in parts:
        if part in (b"", b".", b"..") or b"\0" in part:
            raise NameRefused("a path that does not lead down", errno.EILSEQ)
        if len(part) > limits.QFILE_MAX_COMPONENT:
            raise NameRefused(f"a name of {len(part)} bytes", errno.ENAMETOOLONG)
        if not all_names and not is_displayable(part):
            raise NameRefused("a name with letters that are not shown", errno.EILSEQ)
    return parts


def check_target(depth: int, untrusted_target: bytes, *, all_names: bool) -> None:
    """Whether the target of a link at a path of ``depth`` parts stays inside the first of them.

    So there is no link at the top, a target begins with at most ``depth - 2`` times ``..``, and has none later.

    :raise NameRefused: it does not (ENOLINK), or has a letter it may not have (EILSEQ).
    """
    if b"\0" in untrusted_target or (not all_names and not is_displayable(untrusted_target)):
        raise NameRefused("a target with letters that are not shown", errno.EILSEQ)
    if depth < 2 or untrusted_target.startswith(b"/"):
        raise NameRefused("a link at the top, or to an absolute path", errno.ENOLINK)
    may_climb = depth - 2
    for part in untrusted_target.split(b"/"):
        if part == b"..":
            if may_climb == 0:
                raise NameRefused("a link that may lead outside", errno.ENOLINK)
            may_climb -= 1
        elif part not in (b"", b"."):
            may_climb = 0
