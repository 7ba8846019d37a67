"""Invariant: any bytes decode to a request whose texts are printable (ASCII, but for what a qube tells) and whose
encoding decodes to it again, or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula.policy.agent import MAX_LINES, Notice, Notification, Question, Remark, Resolution, decode, encode
from insula_proto.errors import RemoteProtocolError

_QUESTION = Question(
    "untrusted", "qubes.Filecopy", "+", ("work", "@dispvm:web"), "work", {"untrusted": "appvm-red", "work": ""}
)
SEEDS = [
    encode(_QUESTION),
    encode(Notice(Resolution.DENY, "qubes.Gpg", "+sign", "untrusted", "")),
    encode(Remark("work", "its windows are gone")),
    encode(Notification("work", "appvm-red", 7, True, "Grüße", "two\nlines")),
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
    assert decode(encode(request)) == request
    texts = [request.source]
    match request:
        case Question():
            texts += [request.service, request.argument, *request.targets, *request.icons, *request.icons.values()]
            assert request.targets
            assert request.default_target is None or request.default_target in request.targets
        case Notice():
            texts += [request.service, request.argument, request.target]
        case Notification():
            lines = request.text.split("\n")
            assert len(lines) <= MAX_LINES
            assert all(line.isprintable() for line in (request.title, *lines))
            texts.append(request.icon)
    assert all(" " < character < "\x7f" for text in texts for character in text)


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
