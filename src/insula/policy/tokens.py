"""Tokens: the words that name qubes in a rule (table of qrexec §6), and where each may stand.

Matching is set membership: every rule has the *key* of its token, and the snapshot knows for every qube the set of
keys that mean it (:mod:`insula.policy.snapshot`). So no token needs code of its own to match.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

ADMIN_KEY = "@adminvm"
ADMIN_SPELLINGS = frozenset({"dom0", ADMIN_KEY, "uuid:00000000-0000-0000-0000-000000000000"})
DISPVM = "@dispvm"
DISPVM_OF = "@dispvm:"
DEFAULT = "@default"


class TokenError(ValueError):
    """The word is no token, or not one for this place. ``str()`` is the reason."""


class Place(Enum):
    """Where a token stands; the value is said in errors."""

    SOURCE = "as a source"
    TARGET = "as a target"
    REDIRECT = "in target= or default_target="
    REQUEST = "as the target of a call"


class Kind(Enum):
    ANYTHING = auto()
    """``*``"""
    ANYVM = auto()
    """``@anyvm``: everything but dom0, also what is no qube yet (``@default``, ``@dispvm…``)."""
    ADMIN = auto()
    """dom0, in one of three spellings."""
    NAME = auto()
    """A qube's name or ``uuid:…``. Whether there is such a qube is not asked."""
    TYPE = auto()
    """``@type:CLASS``"""
    TAG = auto()
    """``@tag:TAG``"""
    DEFAULT = auto()
    """``@default``: the caller named no target."""
    DISPVM = auto()
    """``@dispvm``: a new disposable of the caller's default_dispvm."""
    DISPVM_OF = auto()
    """``@dispvm:BASE``: a new disposable of that base."""
    DISPVM_TAG = auto()
    """``@dispvm:@tag:TAG``: a new disposable of a base with that tag."""


_BOTH = frozenset({Place.SOURCE, Place.TARGET})
_EVERYWHERE = frozenset(Place)
_PLACES = {
    Kind.ANYTHING: _BOTH,
    Kind.ANYVM: _BOTH,
    Kind.ADMIN: _EVERYWHERE,
    Kind.NAME: _EVERYWHERE,
    Kind.TYPE: _BOTH,
    Kind.TAG: _BOTH,
    Kind.DEFAULT: frozenset({Place.TARGET, Place.REQUEST}),
    Kind.DISPVM: frozenset({Place.TARGET, Place.REDIRECT, Place.REQUEST}),
    Kind.DISPVM_OF: _EVERYWHERE,
    Kind.DISPVM_TAG: _BOTH,
}
"""``@dispvm:…`` as a source is allowed as published, and never matches: a caller always exists."""

_EXACT = {
    "*": Kind.ANYTHING,
    "@anyvm": Kind.ANYVM,
    DEFAULT: Kind.DEFAULT,
    DISPVM: Kind.DISPVM,
    **dict.fromkeys(ADMIN_SPELLINGS, Kind.ADMIN),
}
_PREFIXES = (
    ("@type:", Kind.TYPE),
    ("@tag:", Kind.TAG),
    ("@dispvm:@tag:", Kind.DISPVM_TAG),
    (DISPVM_OF, Kind.DISPVM_OF),
)
"""The longer before the shorter."""

_MAX_SHOWN = 64
"""Characters of a wrong word repeated in an error."""


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    """As written."""
    kind: Kind

    @property
    def key(self) -> str:
        """What is looked up in sets of keys: the text; one spelling for dom0."""
        return ADMIN_KEY if self.kind is Kind.ADMIN else self.text

    @property
    def base(self) -> str:
        """Of ``@dispvm:BASE``: the base."""
        return self.text.removeprefix(DISPVM_OF)

    def __str__(self) -> str:
        return self.text


def parse_token(untrusted_text: str, place: Place) -> Token:
    """:raise TokenError: no such token, an empty part, or not allowed at this place."""
    kind = _kind(untrusted_text)
    if place not in _PLACES[kind]:
        raise TokenError(f"{untrusted_text[:_MAX_SHOWN]!a} cannot stand {place.value}")
    return Token(untrusted_text, kind)


def _kind(text: str) -> Kind:
    kind = _EXACT.get(text)
    if kind is not None:
        return kind
    if not text:
        raise TokenError("a qube is missing")
    if not text.startswith("@"):
        return Kind.NAME
    for prefix, prefix_kind in _PREFIXES:
        if text.startswith(prefix):
            value = text[len(prefix) :]
            if not value or value.startswith("@"):
                break
            return prefix_kind
    raise TokenError(f"{text[:_MAX_SHOWN]!a} is no token of the policy language")
