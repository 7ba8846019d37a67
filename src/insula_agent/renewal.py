"""What must be this machine's own and no other's, although a fork has it all from its seed: random numbers, the clock,
the boot's id, the machine's id (docs/decisions/009-identity-at-fork.md).

``plan_*`` functions decide from the keys; the rest does it.
"""

from __future__ import annotations

import errno
import os
import struct
import time

from insula_agent import files, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SEED_KEY = "/qubes-random-seed"
CLOCK_KEY = "/insula-clock"
"""Time of the host when it served the keys or let this machine go on, decimal nanoseconds since the epoch. With
:data:`CHECK` at its end it was sent to check the clock, not to set it."""
CHECK = b"?"
SLACK_NS = 20_000_000
"""A clock that is late by less is left alone: whoever watches it is woken by a change."""
DELAY_NS = 10_000_000_000
"""A word that sets the clock is no longer under way than this, on a very busy host. What is later is meant so."""
MACHINE_ID_KEY = "/insula-machine-id"
SEED_MAX = 3072
"""Bytes of a key's value."""
EARLIEST, LATEST = 1_500_000_000, 8_000_000_000
"""Seconds since the epoch (2017, 2223) between which a clock is believed."""

_RNDADDENTROPY = 0x40085203  # <linux/random.h>: _IOW('R', 0x03, int[2])
_RNDRESEEDCRNG = 0x5207  # _IO('R', 0x07)

NO_ENTROPY = struct.pack("ii4s", 0, 4, b"")
"""Mixes in something that does not count."""

BOOT_ID = "/proc/sys/kernel/random/boot_id"
OWN_BOOT_ID = "/run/insula/boot-id"


class RenewalError(Exception):
    """A key has a value that cannot be meant."""


def plan_entropy(encoded: bytes) -> bytes | None:
    """The host's random seed as ``struct rand_pool_info``: entropy in bits, size in bytes, the bytes. None without.

    :raise RenewalError: not base64.
    """
    if not encoded or len(encoded) > SEED_MAX:
        return None
    import binascii  # noqa: PLC0415 - imports of a boot are counted

    try:
        seed = binascii.a2b_base64(encoded)
    except binascii.Error as error:
        raise RenewalError("the random seed is not base64") from error
    return struct.pack(f"ii{len(seed)}s", 8 * len(seed), len(seed), seed)


def plan_clock(value: bytes) -> int | None:
    """Nanoseconds since the epoch; None without. :raise RenewalError: no time, or one nobody lives in."""
    if not value:
        return None
    if not value.isdigit() or len(value) > 20 or not EARLIEST <= int(value) // 1_000_000_000 < LATEST:
        raise RenewalError(f"{CLOCK_KEY} is no time: {value!r}")
    return int(value)


def plan_setting(value: bytes, now: int) -> int | None:
    """What to set the clock to, which says ``now``; None: it stays.

    A word of the time is obeyed late, by what it took to get here. A word that checks makes good for an earlier one
    that took longer; it never sets a clock back, nor one that somebody has set otherwise. :raise RenewalError:
    """
    if not value.endswith(CHECK):
        return plan_clock(value)
    told = plan_clock(value[: -len(CHECK)])
    return told if told is not None and SLACK_NS < told - now < DELAY_NS else None


def plan_boot_id(random: bytes) -> str:
    """16 random bytes as the kernel writes a boot id: a UUID of version 4 (RFC 4122 §4.4)."""
    number = bytearray(random)
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    digits = number.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def plan_machine_id(keys: Mapping[str, bytes], cmdline: str) -> str | None:
    """The machine's id, 32 hex digits: from the key, else from ``systemd.machine_id=`` on the kernel command line."""
    words = [f"systemd.machine_id={keys.get(MACHINE_ID_KEY, b'').decode('ascii', 'replace')}", *cmdline.split()]
    for word in words:
        name, _, value = word.partition("=")
        if name == "systemd.machine_id":
            digits = value.replace("-", "").lower()
            if len(digits) == 32 and frozenset("0123456789abcdef").issuperset(digits) and digits.strip("0"):
                return digits
    return None


# --- acting --------------------------------------------------------------------------------------------------------


def mix_entropy(info: bytes) -> None:
    """Mix the host's seed into the kernel's pool, let it count (nobody else has it), and have the generator use it now:
    by itself it would go on with the seed's state for up to a minute."""
    import fcntl  # noqa: PLC0415

    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, info)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    except OSError as error:
        # Not seeded at all yet, so nothing of an older state can be in use either.
        if error.errno != errno.ENODATA:
            raise
    finally:
        os.close(fd)


def set_clock(nanoseconds: int) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)


def renew_boot_id() -> None:
    """Show an id of this fork's own where the kernel shows the one of the seed's boot, as containers do.

    :raise OSError: it could not be shown.
    """
    if os.stat(BOOT_ID).st_dev != os.stat("/proc/version").st_dev:
        # Done by an agent before this one.
        return
    files.write(OWN_BOOT_ID, plan_boot_id(os.urandom(16)) + "\n", 0o444)
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.bind(OWN_BOOT_ID, BOOT_ID, flags)
