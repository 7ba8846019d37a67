"""One-use tokens: ``CloneFrom`` on the source gives one, ``CloneTo`` on the target takes it (admin-api §2).

So a caller that may read one volume and write another can copy without reading the data itself.
"""

from __future__ import annotations

import secrets
import string
from collections import OrderedDict
from uuid import UUID

from insula.model.errors import QubesVolumeCopyTokenNotFoundError

TOKEN_LENGTH = 32
"""Letters and digits; admin-api §2."""
MAX_TOKENS = 1024
"""Tokens not taken yet; when one more is given the oldest dies."""

_ALPHABET = string.ascii_letters + string.digits


class CopyTokens:
    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[UUID, str]] = OrderedDict()

    def give(self, qube: UUID, volume: str) -> str:
        """Return a new token for this volume. By UUID: a later qube of the same name is another one (MC-20)."""
        token = "".join(secrets.choice(_ALPHABET) for _ in range(TOKEN_LENGTH))
        self._sources[token] = (qube, volume)
        if len(self._sources) > MAX_TOKENS:
            self._sources.popitem(last=False)
        return token

    def take(self, untrusted_token: str) -> tuple[UUID, str]:
        """Return whose volume the token is for; it is used up by that.

        :raise QubesVolumeCopyTokenNotFoundError:
        """
        try:
            return self._sources.pop(untrusted_token)
        except KeyError:
            raise QubesVolumeCopyTokenNotFoundError("No such copy token, or it was used already") from None
