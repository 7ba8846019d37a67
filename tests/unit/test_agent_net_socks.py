"""What is said to a SOCKS proxy before a connection carries bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.net.socks import Negotiation, SocksError

HEAD = b"\5\0\0"


def negotiate(negotiation: Negotiation, untrusted_answers: bytes) -> bytes:
    """What is left of the answers. :raise SocksError: or EOFError, if there are too few."""
    while negotiation.wanted:
        untrusted_data, untrusted_answers = (
            untrusted_answers[: negotiation.wanted],
            untrusted_answers[negotiation.wanted :],
        )
        if len(untrusted_data) < negotiation.wanted:
            raise EOFError
        negotiation.receive(untrusted_data)
    return untrusted_answers


@given(
    st.sampled_from([b"\1" + bytes(4), b"\4" + bytes(16), b"\3\7example"]),
    st.binary(max_size=20),
)
def test_answer_ends_where_its_address_does(address: bytes, rest: bytes) -> None:
    negotiation = Negotiation("deb.debian.org", 443, "me")
    assert negotiation.first == b"\5\1\2"
    assert negotiate(negotiation, b"\5\2" + b"\1\0" + HEAD + address + b"\0\0" + rest) == rest


def test_name_goes_as_it_is_with_user_and_port() -> None:
    negotiation = Negotiation("deb.debian.org", 443, "me")
    assert negotiation.receive(b"\5\2") == b"\1\2me\1-"
    assert negotiation.receive(b"\1\0") == b"\5\1\0\3\x0edeb.debian.org\1\xbb"


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\5\2\1\0" + data))
def test_any_answer_is_a_connection_or_an_error(data: bytes) -> None:
    negotiation = Negotiation("deb.debian.org", 80, "me")
    try:
        negotiate(negotiation, data)
    except (SocksError, EOFError):
        return
    assert data.startswith(b"\5\2")


@pytest.mark.parametrize("answers", [b"\5\0", b"\4\2", b"\5\2\1\1", b"\5\2\1\0\5\4\0\1\0", b"\5\2\1\0\5\0\0\2\0"])
def test_refusals_are_errors(answers: bytes) -> None:
    with pytest.raises(SocksError):
        negotiate(Negotiation("deb.debian.org", 80, "me"), answers + bytes(40))


@pytest.mark.parametrize("host", ["", "x" * 256, "d\u00e9bian.org"])
def test_name_that_cannot_be_said_is_refused(host: str) -> None:
    with pytest.raises(SocksError):
        Negotiation(host, 80, "me")
