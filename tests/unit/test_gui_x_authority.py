from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import x_authority

LOCAL, WILD, INTERNET = 256, 0xFFFF, 0


def entry(family: int, number: str, cookie: bytes = b"cookie", address: bytes = b"host") -> bytes:
    fields = (address, number.encode(), b"MIT-MAGIC-COOKIE-1", cookie)
    return struct.pack(">H", family) + b"".join(struct.pack(">H", len(field)) + field for field in fields)


def test_cookie_of_the_display_is_kept_and_nobody_elses() -> None:
    wanted = [entry(LOCAL, "0"), entry(WILD, "0"), entry(LOCAL, "")]
    others = [entry(LOCAL, "1", b"secret"), entry(INTERNET, "0", b"secret"), entry(LOCAL, "00", b"secret")]
    kept = x_authority.of_display(b"".join([*others, *wanted, *others]), "0")
    assert kept == b"".join(wanted)
    assert b"secret" not in kept


def test_no_entry_is_empty() -> None:
    assert x_authority.of_display(b"", "0") == b""


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_value_error_and_are_kept_in_bounds(data: bytes) -> None:
    try:
        assert len(x_authority.of_display(data, "0")) <= x_authority.MAX_KEPT
    except ValueError:
        return


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 30])
def test_file_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="in the middle"):
        x_authority.of_display(entry(LOCAL, "0")[:cut], "0")


def test_many_cookies_of_one_display_are_not_all_kept() -> None:
    data = entry(LOCAL, "0") * 1000
    assert 0 < len(x_authority.of_display(data, "0")) <= x_authority.MAX_KEPT


def test_huge_file_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        x_authority.of_display(bytes(x_authority.MAX_SIZE + 1), "0")
