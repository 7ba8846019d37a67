"""Invariant: any bytes are one plain file name of few letters, or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula_proto import limits, open_in_vm
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    open_in_vm.encode(b"letter.pdf", is_view_only=False),
    open_in_vm.encode(b"x" * 300 + b".pdf", is_view_only=True),
    b"../x".ljust(limits.OPEN_NAME_SIZE, b"\0"),
    b"-rf".ljust(limits.OPEN_NAME_SIZE, b"\0"),
    b"a" * limits.OPEN_NAME_SIZE,
    bytes(limits.OPEN_NAME_SIZE),
]


def fuzz_one(data: bytes) -> None:
    for field in (data, data[: limits.OPEN_NAME_SIZE].ljust(limits.OPEN_NAME_SIZE, b"\0")):
        try:
            found = open_in_vm.decode(field)
        except RemoteProtocolError:
            continue
        assert 0 < len(found.name) <= limits.OPEN_NAME_SIZE
        assert found.name.isascii()
        assert found.name.isprintable()
        assert not {"/", " ", "%", "$", "`", "\\"}.intersection(found.name)
        assert found.name not in (".", "..")
        assert not found.name.startswith("-")
        again = open_in_vm.encode(found.name.encode(), is_view_only=found.is_view_only)
        assert open_in_vm.decode(again).is_view_only == found.is_view_only


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
