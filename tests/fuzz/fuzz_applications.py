"""Invariant: any bytes are a list of applications with printable names and identifiers of their alphabet, or
ProtocolError."""

from __future__ import annotations

import harness

from insula.model.applications import is_application_id, parse_applications
from insula.model.errors import ProtocolError

SEEDS = [
    b"a.desktop:Type=Application\na.desktop:Name=Editor\na.desktop:Exec=qubes-desktop-run a.desktop\n\n",
    b"b.desktop:Name=\xe2\x80\xaex\nb.desktop:Exec=x\nb.desktop:Icon=/etc/x\nb.desktop:Categories=A;B;\n",
]


def fuzz_one(data: bytes) -> None:
    try:
        found = parse_applications(data)
    except ProtocolError:
        return
    for entry in found:
        assert is_application_id(entry.id)
        assert entry.name.isprintable()
        assert entry.comment.isprintable()
        assert "/" not in entry.icon


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
