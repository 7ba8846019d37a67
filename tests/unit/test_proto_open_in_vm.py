"""The name field of ``qubes.OpenInVM``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import open_in_vm
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.open_in_vm import FileName


def test_published_bytes() -> None:
    assert open_in_vm.encode(b"a.pdf", is_view_only=False) == b"a.pdf" + bytes(251)
    assert open_in_vm.encode(b"a.pdf", is_view_only=True) == b"view-only-a.pdf" + bytes(241)


@pytest.mark.parametrize(("is_view_only", "kept"), [(False, 255), (True, 245)])
def test_of_a_long_name_the_end_is_kept(is_view_only: bool, kept: int) -> None:
    field = open_in_vm.encode(b"x" * 300 + b".pdf", is_view_only=is_view_only)
    assert len(field) == 256
    assert open_in_vm.decode(field) == FileName("x" * (kept - 4) + ".pdf", is_view_only=is_view_only)


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0b"])
def test_encode_what_is_no_name_is_our_fault(name: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        open_in_vm.encode(name, is_view_only=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a b;$(id)`.pdf", "a_b___id__.pdf"), ("ü.txt".encode(), "__.txt"), (b"a\n\x1b[2J", "a___2J"), (b"..", "_.."),
        (b"", "_"), (b"-rf", "_-rf"), (b"user+tag@x_1.txt", "user+tag@x_1.txt"),
    ],
)  # fmt: skip
def test_decode_letters_of_no_file_name_replaced(name: bytes, expected: str) -> None:
    """MC-05, MC-17."""
    assert open_in_vm.decode(name.ljust(256, b"\0")).name == expected


@pytest.mark.parametrize("field", [b"", b"a" * 256, b"a" * 255, b"a".ljust(257, b"\0"), b"../a".ljust(256, b"\0")])
def test_decode_no_field_refused(field: bytes) -> None:
    """MC-01, MC-11."""
    with pytest.raises(RemoteProtocolError):
        open_in_vm.decode(field)


@given(st.binary(max_size=300).map(lambda data: data.ljust(256, b"\0")))
def test_decode_any_bytes_are_one_plain_name_or_remote_error(field: bytes) -> None:
    try:
        name = open_in_vm.decode(field).name
    except RemoteProtocolError:
        return
    assert 0 < len(name) <= 256
    assert "/" not in name
    assert name not in (".", "..")
    assert not name.startswith("-")
    assert name.isascii()
    assert name.isprintable()
