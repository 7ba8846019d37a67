"""Invariant: any bytes decode to a request whose texts are printable ASCII and whose encoding decodes to it again, or
RemoteProtocolError."""

from __future__ import annotations

import harness

from insula.policy.agent import Notice, Question, Resolution, decode, encode
from insula_proto.errors import RemoteProtocolError

_QUESTION = Question(
    "untrusted", "qubes.Filecopy", "+", ("work", "@dispvm:web"), "work", {"untrusted": "appvm-red", "work": ""}
)
SEEDS = [
    encode(_QUESTION),
    encode(Notice(Resolution.DENY, "qubes.Gpg", "+sign", "untrusted", "")),
    b"policy.Ask dom0\0{}",
    b"policy.Notify+ dom0 keyword adminvm\0[]",
    b"policy.Ask dom0 name dom0\0" + b"[" * 2000,
    b"",
]


def fuzz_one(data: bytes) -> None:
    try:
        request = decode(data)
    except RemoteProtocolError:
        return
    texts = [request.source, request.service, request.argument]
    if isinstance(request, Question):
        texts += [*request.targets, *request.icons, *request.icons.values()]
        assert request.targets
        assert request.default_target is None or request.default_target in request.targets
    else:
        texts.append(request.target)
    assert all(" " < character < "\x7f" for text in texts for character in text)
    assert decode(encode(request)) == request


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
