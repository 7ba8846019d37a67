"""The header of a LUKS1 volume: a fresh master key, wrapped for one passphrase.

Written here and not by ``qemu-img create``, which takes seconds, most of them to find out how slow a passphrase can be
made to try on this machine. That protects passphrases of people. Ours are 192 random bits
(:func:`insula.model.block.new_key`), so the smallest iteration count of the specification is enough.

Nothing here reads a header, and no header is used again once its machine has ended.

Source of layout, constants and algorithms: "LUKS1 On-Disk Format Specification", version 1.2.3 (partition header and
key slot, anti-forensic splitter, PBKDF2); all integers are big-endian. What QEMU wants beyond that: 4000 stripes, and
eight slots that do not overlap, whether in use or not (``crypto/block-luks.c``).
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import uuid
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SECTOR = 512
CIPHER, CIPHER_MODE, HASH = b"aes", b"xts-plain64", b"sha256"
KEY_SIZE = 32
"""Bytes of the master key: two AES keys of 128 bits, as XTS needs two."""
ITERATIONS = 1000
"""The smallest number the specification allows; see above why it is enough."""
STRIPES = 4000
SLOTS = 8
SALT_SIZE = 32
DIGEST_SIZE = 20
SLOT_ALIGNMENT = 4096 // SECTOR
"""Sectors."""
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
"""magic, version, cipher, mode, hash, payload offset (sectors), key bytes, digest of the master key, its salt, its
iterations, UUID."""
_SLOT = struct.Struct(">II32sII")
"""state, iterations, salt, offset of the key material (sectors), stripes."""
HEADER_SIZE = _HEADER.size + SLOTS * _SLOT.size
assert HEADER_SIZE == 592

_MATERIAL_SECTORS = -(-KEY_SIZE * STRIPES // SECTOR)
_SLOT_SECTORS = -(-_MATERIAL_SECTORS // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
PAYLOAD_OFFSET = SLOT_ALIGNMENT + SLOTS * _SLOT_SECTORS
"""Sectors that header and key slots take."""
MATERIAL_OFFSET = SLOT_ALIGNMENT * SECTOR
"""Bytes; key material of the first slot, the only one in use."""


@dataclass(frozen=True)
class Header:
    """The parts of a header that are not zero."""

    header: bytes
    """At offset 0; HEADER_SIZE bytes."""
    key_material: bytes
    """At MATERIAL_OFFSET."""

    length: int = PAYLOAD_OFFSET * SECTOR
    """Bytes from the header's start to the end of the last slot."""


def new_header(passphrase: bytes) -> Header:
    """A volume with a random master key that ``passphrase`` opens.

    :param passphrase: too many random bits to be found by trying: the wrapping is not made slow to try.
    """
    master_key = os.urandom(KEY_SIZE)
    digest_salt, slot_salt = os.urandom(SALT_SIZE), os.urandom(SALT_SIZE)
    digest = hashlib.pbkdf2_hmac("sha256", master_key, digest_salt, ITERATIONS, DIGEST_SIZE)
    slot_key = hashlib.pbkdf2_hmac("sha256", passphrase, slot_salt, ITERATIONS, KEY_SIZE)
    header = _HEADER.pack(
        b"LUKS\xba\xbe", 1, CIPHER, CIPHER_MODE, HASH, PAYLOAD_OFFSET, KEY_SIZE,
        digest, digest_salt, ITERATIONS, str(uuid.uuid4()).encode("ascii"),
    )  # fmt: skip
    slots = [_SLOT.pack(_ENABLED, ITERATIONS, slot_salt, SLOT_ALIGNMENT, STRIPES)]
    for number in range(1, SLOTS):
        offset = SLOT_ALIGNMENT + number * _SLOT_SECTORS
        slots.append(_SLOT.pack(_DISABLED, 0, bytes(SALT_SIZE), offset, STRIPES))
    return Header(header + b"".join(slots), _encrypt(slot_key, _split(master_key)))


def _split(master_key: bytes) -> bytes:
    """Spread a key over STRIPES stripes such that all of them are needed to get it back (AF splitter)."""
    stripes, state = _random_stripes()
    return stripes + _xor(state, master_key)


@functools.cache
def _random_stripes() -> tuple[bytes, bytes]:
    """All stripes but the last, and what diffusion makes of them.

    Drawn once a process, because chaining 4000 hashes takes longer than all the rest; they are no secret, and each
    header has them encrypted with a key of its own.
    """
    stripes = os.urandom(KEY_SIZE * (STRIPES - 1))
    state = bytes(KEY_SIZE)
    for start in range(0, len(stripes), KEY_SIZE):
        # One block of the hash, number 0, holds the whole key.
        state = hashlib.sha256(bytes(4) + _xor(state, stripes[start : start + KEY_SIZE])).digest()
    return stripes, state


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


def _encrypt(key: bytes, data: bytes) -> bytes:
    """AES-XTS by sectors; the first one has number 0 (plain64: the number, little-endian)."""
    algorithm = algorithms.AES(key)
    sectors = []
    for number in range(len(data) // SECTOR):
        tweak = modes.XTS(number.to_bytes(16, "little"))
        sectors.append(Cipher(algorithm, tweak).encryptor().update(data[number * SECTOR : (number + 1) * SECTOR]))
    return b"".join(sectors)


assert KEY_SIZE * STRIPES % SECTOR == 0, "key material is whole sectors"
assert hashlib.sha256().digest_size == KEY_SIZE, "diffusion takes one hash a stripe"
