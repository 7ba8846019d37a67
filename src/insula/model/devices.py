"""Devices as clients name them (admin-api §8): the one there is, the microphone of the desktop, and how it is written.

A port is where a device is, a device id what it says it is; a client may name either, or both.
"""

from __future__ import annotations

import re

from insula.model.errors import PermissionDenied, ProtocolError
from insula.model.names import ADMIN_NAME

MICROPHONE = "mic"
"""Its class and its port."""
MICROPHONE_INTERFACE = "m000000"
MICROPHONE_ID = f"0000:0000::{MICROPHONE_INTERFACE}"
PORT = f"{ADMIN_NAME}:{MICROPHONE}"
DEVICE = f"{PORT}:{MICROPHONE_ID}"
"""In events."""
ARGUMENT = f"{ADMIN_NAME}+{MICROPHONE}"
"""Of calls about it."""
CODE_LENGTH = 7
"""Characters of an interface code."""
ANY = "*"
MANUAL = "manual"
_IDENTITY = f"device_id='{MICROPHONE_ID}' port_id='{MICROPHONE}' devclass='{MICROPHONE}' backend_domain='{ADMIN_NAME}'"
_PAIR = re.compile(r"(_?[a-z_]{1,40})='([^' ]{0,120})'")
MAX_PAYLOAD = 1024


def available(attached_to: str | None) -> str:
    """The line of ``Available``."""
    where = f" attachment='{attached_to}'" if attached_to is not None else ""
    return (
        f"{MICROPHONE}:{MICROPHONE_ID} {_IDENTITY} manufacturer='build-in' product='microphone'"
        f"{where} interfaces='{MICROPHONE_INTERFACE}'\n"
    )


def attached_to(text: str) -> str | None:
    """The qube that a line of ``Available`` says has it."""
    found = re.search(r" attachment='([^']*)'", text)
    return None if found is None else found[1]


def assignment(frontend: str) -> str:
    """The line of ``Attached``."""
    return f"{ARGUMENT}:{MICROPHONE_ID} {_IDENTITY} mode='{MANUAL}' frontend_domain='{frontend}'\n"


def check_microphone(untrusted_arg: str) -> None:
    """``BACKEND+PORT`` or ``BACKEND+PORT:DEVID``. :raise ProtocolError: another device than the microphone."""
    port, _, device_id = untrusted_arg.partition(":")
    if port != ARGUMENT or device_id not in ("", ANY, MICROPHONE_ID):
        raise ProtocolError(f"There is no device {untrusted_arg[:64]}; the microphone is {ARGUMENT}")


def check_assignment(untrusted_payload: bytes, frontend: str) -> None:
    """What a client says beside the argument of an attachment; nothing is a good answer.

    :raise ProtocolError: it contradicts the argument, asks for an option (there is none), or is no assignment.
    """
    if not untrusted_payload:
        return
    expected = {
        "device_id": (MICROPHONE_ID, ANY),
        "port_id": (MICROPHONE,),
        "devclass": (MICROPHONE,),
        "backend_domain": (ADMIN_NAME,),
        "mode": (MANUAL,),
        "frontend_domain": (frontend,),
    }
    untrusted_words = untrusted_payload[:MAX_PAYLOAD].decode("ascii", "replace").split(" ")
    # The client begins it as the line of ``Attached`` begins.
    if "=" not in untrusted_words[0]:
        check_microphone(untrusted_words.pop(0))
    for untrusted_word in untrusted_words:
        pair = _PAIR.fullmatch(untrusted_word)
        if pair is None or pair[2] not in expected.get(pair[1], ()):
            raise ProtocolError(f"The microphone cannot be attached with {untrusted_word[:64]!a}")


def check_denied(codes: str) -> None:
    """``codes``: the property ``devices_denied``. :raise PermissionDenied: one of them fits the microphone."""
    for start in range(0, len(codes), CODE_LENGTH):
        code = codes[start : start + CODE_LENGTH]
        if all(wanted in ("*", has) for wanted, has in zip(code, MICROPHONE_INTERFACE, strict=True)):
            raise PermissionDenied("The qube must not get a microphone (devices_denied)")
