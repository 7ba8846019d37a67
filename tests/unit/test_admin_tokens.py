"""Copy tokens: used once, bounded."""

from __future__ import annotations

from uuid import UUID

import pytest

from insula.admin.tokens import MAX_TOKENS, CopyTokens
from insula.model.errors import QubesVolumeCopyTokenNotFoundError

QUBE = UUID(int=1)


def test_token_is_taken_once() -> None:
    tokens = CopyTokens()
    token = tokens.give(QUBE, "private")
    assert tokens.take(token) == (QUBE, "private")
    with pytest.raises(QubesVolumeCopyTokenNotFoundError):
        tokens.take(token)


def test_tokens_differ() -> None:
    tokens = CopyTokens()
    assert len({tokens.give(QUBE, "private") for _ in range(100)}) == 100


def test_oldest_token_dies_when_there_are_too_many() -> None:
    tokens = CopyTokens()
    first, second = tokens.give(QUBE, "a"), tokens.give(QUBE, "b")
    for _ in range(MAX_TOKENS - 1):
        tokens.give(QUBE, "private")
    with pytest.raises(QubesVolumeCopyTokenNotFoundError):
        tokens.take(first)
    assert tokens.take(second) == (QUBE, "b")
