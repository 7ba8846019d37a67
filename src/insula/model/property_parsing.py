"""From a client's text to a property's value: one parser a kind of value.

Everything is printable ASCII here (admin-api §2: "sanitised as ASCII"), so no value can carry a line break, an escape
sequence or look-alike letters into a file, a kernel command line or a log (MC-101, MC-102). Parsers know nothing
of other properties; rules between properties are in :mod:`insula.model.property_rules`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from insula.model.errors import QubesPropertyValueError
from insula.model.pci import PciAddress
from insula.model.qube import PropertyValue
from insula.model.uplink import CARD_PREFIX, Uplink

Parser = Callable[[str], PropertyValue]
"""Takes unchecked text of printable ASCII. :raise QubesPropertyValueError: without the property's name."""

MAX_TEXT = 4096
"""Characters of any value; ours, above every real use."""
MAX_NUMBER = 2**31 - 1
MAX_KERNEL_OPTIONS = 1024
"""Characters; the kernel takes 2048 with what the driver adds (COMMAND_LINE_SIZE on x86)."""

_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})
"""admin-api §3."""
_DECIMAL = re.compile(r"-?[0-9]{1,10}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_KERNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+~-]{0,127}")
_KEYBOARD_LAYOUT = re.compile(r"[A-Za-z0-9_-]{1,64}\+[A-Za-z0-9_-]{0,64}\+[A-Za-z0-9_:,.-]{0,256}")
_BOOT_MODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SERVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_POOL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INTERFACE_CODE = re.compile(r"[bupm?][0-9a-f*]{6}")


def clean_text(untrusted_text: str) -> str:
    """Return the text if it may be the value of some property.

    :raise QubesPropertyValueError: a character that is not printable ASCII, or too long.
    """
    if len(untrusted_text) > MAX_TEXT:
        raise QubesPropertyValueError(f"longer than {MAX_TEXT} characters")
    for position, character in enumerate(untrusted_text):
        if not " " <= character <= "~":
            raise QubesPropertyValueError(f"character {character!a} at position {position} is not printable ASCII")
    return untrusted_text


def flag(untrusted_text: str) -> bool:
    word = untrusted_text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise QubesPropertyValueError("must be True or False")


def number(low: int, high: int = MAX_NUMBER) -> Parser:
    """A decimal number from ``low`` to ``high``."""

    def parse(untrusted_text: str) -> int:
        if not _DECIMAL.fullmatch(untrusted_text):
            raise QubesPropertyValueError("must be a whole number")
        value = int(untrusted_text)
        if not low <= value <= high:
            raise QubesPropertyValueError(f"must be from {low} to {high}")
        return value

    return parse


def choice(*allowed: str) -> Parser:
    """One of a few words, accepted in any case."""

    def parse(untrusted_text: str) -> str:
        word = untrusted_text.lower()
        if word not in allowed:
            raise QubesPropertyValueError(f"must be one of: {', '.join(allowed)}")
        return word

    return parse


def pattern(expression: re.Pattern[str], meaning: str, *, may_be_empty: bool = False) -> Parser:
    """Text that fits ``expression`` as a whole."""

    def parse(untrusted_text: str) -> str:
        if may_be_empty and not untrusted_text:
            return ""
        if not expression.fullmatch(untrusted_text):
            raise QubesPropertyValueError(f"must be {meaning}")
        return untrusted_text

    return parse


user_name = pattern(_USER, "a user name: 1 to 32 of A-Z a-z 0-9 _ . -, not starting with a digit")
kernel = pattern(_KERNEL, "the version of an installed kernel, or empty", may_be_empty=True)
keyboard_layout = pattern(_KEYBOARD_LAYOUT, "LAYOUT+VARIANT+OPTIONS, like us++")
boot_mode = pattern(_BOOT_MODE, "the name of a boot mode")
service = pattern(_SERVICE, "the name of a service", may_be_empty=True)
pool = pattern(_POOL, "the name of a pool")


def remote_name(untrusted_text: str) -> str:
    """Name of a qube elsewhere: any printable text without spaces and separators of calls."""
    if len(untrusted_text) > 64 or any(character in " +/@$'\"\\" for character in untrusted_text):
        raise QubesPropertyValueError("must be at most 64 characters, without spaces, quotes, + / @ $ \\")
    return untrusted_text


def kernel_options(untrusted_text: str) -> str:
    if len(untrusted_text) > MAX_KERNEL_OPTIONS:
        raise QubesPropertyValueError(f"longer than {MAX_KERNEL_OPTIONS} characters")
    return untrusted_text


def mac_address(untrusted_text: str) -> str:
    value = untrusted_text.lower()
    if not _MAC.fullmatch(value):
        raise QubesPropertyValueError("must be a MAC address like 00:16:3e:5e:6c:00")
    if int(value[:2], 16) & 1:
        raise QubesPropertyValueError("must not be a multicast MAC address")
    return value


def ipv4_address(untrusted_text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(untrusted_text))
    except ValueError:
        raise QubesPropertyValueError("must be an IPv4 address") from None


def ipv6_address(untrusted_text: str) -> str:
    try:
        address = ipaddress.IPv6Address(untrusted_text)
    except ValueError:
        raise QubesPropertyValueError("must be an IPv6 address") from None
    if address.scope_id is not None:
        raise QubesPropertyValueError("must be an IPv6 address without a zone")
    return str(address)


def uplink(untrusted_text: str) -> str:
    value = untrusted_text.lower()
    if value in (Uplink.NONE, Uplink.HOST):
        return value
    try:
        return f"{CARD_PREFIX}{PciAddress.parse(value.removeprefix(CARD_PREFIX))}"
    except ValueError:
        raise QubesPropertyValueError(
            "must be none, host, or a network card of this computer like pci:0000:03:00.0"
        ) from None


def denied_interfaces(untrusted_text: str) -> str:
    """Seven-character interface codes (admin-api §8), concatenated; kept sorted and unique."""
    codes = [untrusted_text[i : i + 7] for i in range(0, len(untrusted_text), 7)]
    for code in codes:
        if not _INTERFACE_CODE.fullmatch(code):
            raise QubesPropertyValueError(
                f"{code!r} is not an interface code (b, u, p, m or ? and six hex digits or *)"
            )
    return "".join(sorted(set(codes)))
