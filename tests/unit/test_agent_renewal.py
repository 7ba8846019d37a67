"""What a fork must have of its own."""

from __future__ import annotations

import base64
import struct
import uuid

import pytest

from insula_agent.renewal import (
    RenewalError,
    plan_boot_id,
    plan_clock,
    plan_entropy,
    plan_machine_id,
    plan_setting,
)


def test_entropy_counts_every_bit_of_the_seed() -> None:
    seed = bytes(range(64))
    assert plan_entropy(base64.b64encode(seed)) == struct.pack("ii", 512, 64) + seed


@pytest.mark.parametrize("encoded", [b"", b"A" * 4000])
def test_no_seed_or_one_that_is_too_long_is_no_entropy(encoded: bytes) -> None:
    assert plan_entropy(encoded) is None


def test_seed_that_is_not_base64_is_refused() -> None:
    with pytest.raises(RenewalError):
        plan_entropy(b"A")


def test_clock_is_nanoseconds_since_the_epoch() -> None:
    assert plan_clock(b"1795461647357201300") == 1795461647357201300
    assert plan_clock(b"") is None


@pytest.mark.parametrize(
    "value", [b"0", b"-1", b"1795461647", b"1.5e18", b"\xff", b"9" * 19, b"9" * 40, b"1795461647357201300 "]
)
def test_clock_that_is_no_time_of_ours_is_refused(value: bytes) -> None:
    with pytest.raises(RenewalError):
        plan_clock(value)


NOW = 1795461647357201300
SECOND = 1_000_000_000


@pytest.mark.parametrize("late", [-SECOND * 3600, -SECOND, 0, SECOND, SECOND * 3600])
def test_word_of_the_time_is_obeyed_whatever_the_clock_says(late: int) -> None:
    assert plan_setting(b"%d" % NOW, NOW - late) == NOW


@pytest.mark.parametrize(
    ("late", "is_set"),
    [(SECOND // 3, True), (SECOND * 9, True), (SECOND // 100, False), (-SECOND // 3, False), (SECOND * 3600, False)],
)
def test_check_puts_right_what_is_late_by_the_way_a_word_took_and_nothing_else(*, late: int, is_set: bool) -> None:
    assert plan_setting(b"%d?" % NOW, NOW - late) == (NOW if is_set else None)


@pytest.mark.parametrize("value", [b"soon?", b"1?", b"1795461647357201300??", b"?1795461647357201300"])
def test_check_that_is_no_time_is_refused(value: bytes) -> None:
    with pytest.raises(RenewalError):
        plan_setting(value, NOW)


@pytest.mark.parametrize("random", [bytes(16), b"\xff" * 16, bytes(range(16))])
def test_boot_id_is_a_random_uuid(random: bytes) -> None:
    text = plan_boot_id(random)
    assert str(uuid.UUID(text)) == text
    assert uuid.UUID(text).version == 4
    assert uuid.UUID(text) == uuid.UUID(bytes=random, version=4)


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("quiet systemd.machine_id=0123456789ABCDEF0123456789abcdef x", "0123456789abcdef0123456789abcdef"),
        ("systemd.machine_id=01234567-89ab-cdef-0123-456789abcdef", "0123456789abcdef0123456789abcdef"),
        ("quiet", None),
        ("systemd.machine_id=", None),
        ("systemd.machine_id=" + "0" * 32, None),
        ("systemd.machine_id=" + "g" * 32, None),
        ("systemd.machine_id=" + "a" * 31, None),
    ],
)
def test_machine_id_comes_from_the_command_line_without_a_key(cmdline: str, expected: str | None) -> None:
    assert plan_machine_id({}, cmdline) == expected


def test_machine_id_comes_from_the_key_before_the_command_line() -> None:
    assert plan_machine_id({"/insula-machine-id": b"b" * 32}, "systemd.machine_id=" + "a" * 32) == "b" * 32


@pytest.mark.parametrize("value", [b"", b"x", b"0" * 32, b"\xff" * 32, b"../etc/passwd"])
def test_machine_id_key_that_is_none_is_passed_over(value: bytes) -> None:
    assert plan_machine_id({"/insula-machine-id": value}, "systemd.machine_id=" + "a" * 32) == "a" * 32
