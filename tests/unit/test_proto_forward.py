"""Forwarded ports as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto.forward import MAX_FORWARDS, Forward, ForwardError, format_forwards, parse_forward, parse_forwards

ports = st.integers(1, 65535)
forwards = st.lists(
    st.builds(Forward, st.sampled_from(["tcp", "udp"]), ports, ports),
    max_size=MAX_FORWARDS,
    unique_by=lambda one: (one.protocol, one.port),
)


@given(forwards)
def test_what_is_written_is_read(some: list[Forward]) -> None:
    assert parse_forwards(format_forwards(some)) == some


@given(st.text(max_size=80) | st.text("tcpud:0123456789 ", max_size=80))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        some = parse_forwards(text)
    except ForwardError:
        return
    assert format_forwards(some) == text


@pytest.mark.parametrize(
    "word",
    [
        "",
        "tcp:80",
        "tcp:80:80:80",
        "icmp:1:1",
        "tcp:0:80",
        "tcp:80:65536",
        "tcp:080:80",
        "tcp:+1:1",
        "tcp:٨:80",
        "TCP:1:1",
    ],
)
def test_word_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ForwardError):
        parse_forward(word)


@pytest.mark.parametrize(
    "text",
    [
        "tcp:80:80  tcp:81:80",
        " tcp:80:80",
        "tcp:80:80 tcp:80:81",
        " ".join(f"tcp:{port}:1" for port in range(1, MAX_FORWARDS + 2)),
        'tcp:80:80"; flush ruleset',
    ],
)
def test_text_that_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ForwardError):
        parse_forwards(text)
