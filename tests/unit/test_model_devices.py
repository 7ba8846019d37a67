"""The microphone as clients name it: what fits, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model import devices
from insula.model.devices import ARGUMENT, MICROPHONE_ID
from insula.model.errors import PermissionDenied, ProtocolError


def test_who_has_it_is_in_the_line_and_comes_out_of_it() -> None:
    assert devices.attached_to(devices.available("work")) == "work"
    assert devices.attached_to(devices.available(None)) is None
    assert devices.attached_to("") is None


@pytest.mark.parametrize("argument", [ARGUMENT, f"{ARGUMENT}:*", f"{ARGUMENT}:{MICROPHONE_ID}"])
def test_argument_that_names_it(argument: str) -> None:
    devices.check_microphone(argument)


@pytest.mark.parametrize("argument", ["", "mic", "work+mic", "dom0+sda", f"{ARGUMENT}:other", "dom0+mic+mic"])
def test_argument_that_names_another_device_is_refused(argument: str) -> None:
    with pytest.raises(ProtocolError):
        devices.check_microphone(argument)


def test_payload_that_agrees_is_taken_and_so_is_none() -> None:
    for payload in (
        b"",
        devices.assignment("work").strip().encode(),
        b"device_id='*' port_id='mic' devclass='mic' backend_domain='dom0' mode='manual' frontend_domain='work'",
    ):
        devices.check_assignment(payload, "work")


@pytest.mark.parametrize(
    "payload",
    [
        devices.assignment("other").strip().encode(),
        b"mode='auto-attach'",
        b"mode='required'",
        b"_read-only='yes'",
        b"port_id='sda'",
        b"backend_domain='work'",
        b"mode=manual",
        b"mode='manual' ",
        b"work+mic:* mode='manual'",
    ],
)
def test_payload_that_contradicts_or_wants_more_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        devices.check_assignment(payload, "work")


@given(st.binary(max_size=200), st.text(max_size=40))
def test_mc11_any_bytes_are_taken_or_refused(payload: bytes, argument: str) -> None:
    for check in (lambda: devices.check_assignment(payload, "work"), lambda: devices.check_microphone(argument)):
        try:
            check()
        except ProtocolError:
            continue


@pytest.mark.parametrize("codes", ["m000000", "m******", "*******", "b******m******"])
def test_denied_interface_is_refused(codes: str) -> None:
    with pytest.raises(PermissionDenied):
        devices.check_denied(codes)


def test_others_are_not() -> None:
    devices.check_denied("")
    devices.check_denied("b******m000001")
