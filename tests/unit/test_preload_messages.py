from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.preload import messages
from insula.preload.messages import MAX_REASON, Ended, Failed, Fork, Forked, FromParent
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

FORK = Fork(3, "insula.rpc.session", 0x70000007, 64, 2**30)


@pytest.mark.parametrize("message", [FORK, Fork(0, "p", None, 16, 2**26)])
def test_request_round_trip(message: Fork) -> None:
    assert messages.decode_to_parent(messages.encode(message)) == message


@pytest.mark.parametrize(
    "message", [Forked(1, 4711), Failed(2, "unshare: Operation not permitted"), Ended(3, -9), Ended(4, 255)]
)
def test_answer_round_trip(message: FromParent) -> None:
    assert messages.decode_from_parent(messages.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Fork(1, "p", 0, 64, 2**30),  # root
        Fork(1, "p", 2**32 - 1, 64, 2**30),  # what setresuid(2) takes for "leave it"
        Fork(1, "", None, 64, 2**30),
        Fork(1, "p", None, 0, 2**30),
        Fork(1, "p", None, 64, 0),
        Fork(-1, "p", None, 64, 2**30),
    ],
)
def test_request_out_of_bounds_is_refused(message: Fork) -> None:
    with pytest.raises(RemoteProtocolError):
        messages.decode_to_parent(messages.encode(message))


@pytest.mark.parametrize("message", [Forked(1, 0), Failed(1, "x" * (MAX_REASON + 1)), Ended(1, 256)])
def test_answer_out_of_bounds_is_refused(message: FromParent) -> None:
    with pytest.raises(RemoteProtocolError):
        messages.decode_from_parent(messages.encode(message))


def test_each_side_takes_only_what_the_other_says() -> None:
    with pytest.raises(RemoteProtocolError):
        messages.decode_to_parent(messages.encode(Ended(1, 0)))
    with pytest.raises(RemoteProtocolError):
        messages.decode_from_parent(messages.encode(FORK))


def test_encode_too_long_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        messages.encode(Failed(1, "x" * messages.MAX_MESSAGE))


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_remote_error(data: bytes) -> None:
    for decode in (messages.decode_to_parent, messages.decode_from_parent):
        try:
            decode(data)
        except RemoteProtocolError:
            continue
