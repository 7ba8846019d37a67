"""Notifications on the wire: round trip, what is cut, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import notification
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.notification import MAX_BODY, MAX_NUMBER, MAX_SIZE, URGENCIES, Notification

NUMBERS = st.integers(0, MAX_NUMBER)
TOLD = st.builds(
    notification.notification,
    NUMBERS,
    st.sampled_from(URGENCIES),
    st.text(max_size=100),
    st.text(max_size=400),
    st.text(max_size=3000),
)


@given(TOLD)
def test_any_texts_are_cut_to_what_fits_and_come_back(told: Notification) -> None:
    assert notification.decode(notification.encode(told)) == told


@given(st.text(max_size=40), st.integers(0, 40))
def test_cut_keeps_whole_characters_from_the_beginning(text: str, size: int) -> None:
    kept = notification.cut(text, size)
    assert len(kept) <= size
    whole = text.replace("\0", "").encode("utf-8", "replace")
    assert whole.startswith(kept)
    assert len(whole) <= size or len(kept) > size - 4


@given(TOLD, st.data())
def test_changed_bytes_are_another_notification_or_refused(told: Notification, data: st.DataObject) -> None:
    """MC-11."""
    changed = bytearray(notification.encode(told))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = notification.decode(bytes(changed))
    except RemoteProtocolError:
        return
    assert notification.encode(found) == changed


@pytest.mark.parametrize(
    "untrusted_data",
    [
        b"",
        b"1 normal",
        b"1 normal\0program\0summary",
        b"1 normal\0program\0summary\0body\0more",
        b" normal\0p\0s\0b",
        b"-1 normal\0p\0s\0b",
        b"+1 normal\0p\0s\0b",
        b"01 normal\0p\0s\0b",
        b"\xd9\xa1 normal\0p\0s\0b",
        b"4294967296 normal\0p\0s\0b",
        b"1\0p\0s\0b",
        b"1 loud\0p\0s\0b",
        b"1 normal \0p\0s\0b",
        b"1 normal\0\xff\0s\0b",
        b"1 normal\0p\0s\0" + b"b" * (MAX_BODY + 1),
        b"1 normal\0p\0s\0" + b"b" * MAX_SIZE,
    ],
)
def test_what_is_no_notification_is_refused(untrusted_data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        notification.decode(untrusted_data)


def test_one_that_would_be_refused_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError):
        notification.encode(Notification(MAX_NUMBER + 1, "normal", b"", b"s", b""))
    with pytest.raises(LocalProtocolError):
        notification.encode(Notification(1, "normal", b"", b"a\0b", b""))


def test_one_without_texts_takes_it_away() -> None:
    assert notification.notification(1, "normal", "program", "", "").is_withdrawn
    assert not notification.notification(1, "normal", "", "", "x").is_withdrawn
