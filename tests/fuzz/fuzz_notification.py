"""Invariant: any bytes are a notification that encodes to them again, or RemoteProtocolError; what is shown of one has
printable characters alone; and bytes of a bus in any split give messages or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula.admin.notifications import shown_texts
from insula.policy.agent import MAX_LINES
from insula_agent.notifications import wire
from insula_agent.notifications.wire import Decoder, Message
from insula_proto import notification
from insula_proto.errors import RemoteProtocolError

_NOTIFY = Message(
    wire.CALL,
    7,
    {"path": "/org/freedesktop/Notifications", "member": "Notify", "sender": ":1.3"},
    "susssasa{sv}i",
    ("app", 0, "", "sum", "body", ["a", "b"], {"urgency": ("y", 2), "image-data": ("(iiay)", (1, 2, b"abc"))}, -1),
)
SEEDS = [
    notification.encode(notification.notification(1, "normal", "mail", "Grüße", "two\nlines")),
    notification.encode(notification.notification(0xFFFFFFFF, "critical", "", "\u202egnp.exe", "\x1b[2J\t")),
    wire.encode(_NOTIFY),
    wire.encode(_NOTIFY) * 2,
    b"",
]


def fuzz_one(data: bytes) -> None:
    try:
        told = notification.decode(data)
    except RemoteProtocolError:
        pass
    else:
        assert notification.encode(told) == data
        for allows_utf8 in (False, True):
            title, text = shown_texts(told, allows_utf8=allows_utf8)
            lines = text.split("\n")
            assert len(lines) <= MAX_LINES
            assert all(line.isprintable() for line in (title, *lines))
    decoder = Decoder()
    try:
        for piece in harness.pieces(data):
            decoder.receive(piece)
    except RemoteProtocolError:
        return


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
