from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, vmexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

ARGUMENTS = st.lists(st.binary(max_size=50).map(lambda data: data.replace(b"\0", b"0")), min_size=1, max_size=10)


def test_encode_published_example_matches() -> None:
    assert vmexec.encode([b"ls", b"-a", b"/home/user"]) == b"ls+--a+-2Fhome-2Fuser"


def test_encode_text_outside_ascii_escapes_each_byte() -> None:
    assert vmexec.encode(["ä".encode()]) == b"-C3-A4"


@given(ARGUMENTS)
def test_decode_encoded_returns_same_arguments(arguments: list[bytes]) -> None:
    assert vmexec.decode(vmexec.encode(arguments)) == arguments


@pytest.mark.parametrize("bad", [b"a b", b"-", b"a-", b"-2", b"-2f", b"-G0", b"-00", b"a/b", b"\xc3", b"--2f-", b"a$"])
def test_decode_outside_code_refused(bad: bytes) -> None:
    """MC-16."""
    with pytest.raises(RemoteProtocolError):
        vmexec.decode(bad)


def test_decode_over_limit_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        vmexec.decode(b"a" * (limits.VMEXEC_MAX_ARGUMENT + 1))


@pytest.mark.parametrize("arguments", [[], [b"a\0b"], [b"/" * limits.VMEXEC_MAX_ARGUMENT]])
def test_encode_impossible_command_refused(arguments: list[bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        vmexec.encode(arguments)
