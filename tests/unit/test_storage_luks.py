"""The LUKS header against the specification, read back by hand; QEMU's view of it is in test_storage_qcow2_image.py."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.block import new_key
from insula.storage import luks

# LUKS1 specification, offsets of the partition header's fields
PAYLOAD_OFFSET, KEY_BYTES, DIGEST, DIGEST_SALT, DIGEST_ITERATIONS, SLOTS = 104, 108, 112, 132, 164, 208


def master_key(header: luks.Header, passphrase: bytes) -> bytes:
    """Open the first slot as the specification says, step by step."""
    state, iterations, salt, offset, stripes = struct.unpack_from(">II32sII", header.header, SLOTS)
    assert (state, offset * 512, stripes) == (0x00AC71F3, luks.MATERIAL_OFFSET, 4000)
    key = hashlib.pbkdf2_hmac("sha256", passphrase, salt, iterations, 32)
    plain = b""
    for sector in range(len(header.key_material) // 512):
        decryptor = Cipher(algorithms.AES(key), modes.XTS(struct.pack("<QQ", sector, 0))).decryptor()
        plain += decryptor.update(header.key_material[sector * 512 : (sector + 1) * 512])
    found = bytes(32)
    for stripe in range(stripes):
        mixed = bytes(a ^ b for a, b in zip(found, plain[stripe * 32 : stripe * 32 + 32], strict=True))
        found = mixed if stripe == stripes - 1 else hashlib.sha256(struct.pack(">I", 0) + mixed).digest()
    return found


def opens(header: luks.Header, passphrase: bytes) -> bool:
    (iterations,) = struct.unpack_from(">I", header.header, DIGEST_ITERATIONS)
    salt = header.header[DIGEST_SALT : DIGEST_SALT + 32]
    digest = hashlib.pbkdf2_hmac("sha256", master_key(header, passphrase), salt, iterations, 20)
    return digest == header.header[DIGEST : DIGEST + 20]


def test_header_opens_with_its_passphrase_and_no_other() -> None:
    key = new_key()
    header = luks.new_header(key)
    assert opens(header, key)
    assert not opens(header, new_key())


@pytest.mark.parametrize("position", [0, 64_000, -1])
def test_one_changed_bit_of_the_key_material_loses_the_master_key(position: int) -> None:
    """What the stripes are for: a slot is gone as soon as any part of it is."""
    key = new_key()
    header = luks.new_header(key)
    material = bytearray(header.key_material)
    material[position] ^= 1
    assert not opens(luks.Header(header.header, bytes(material)), key)


def test_headers_share_neither_master_key_nor_salts_nor_material() -> None:
    key = new_key()
    one, two = luks.new_header(key), luks.new_header(key)
    assert master_key(one, key) != master_key(two, key)
    assert one.header[DIGEST : DIGEST + 52] != two.header[DIGEST : DIGEST + 52]
    assert not set(sectors(one.key_material)) & set(sectors(two.key_material))


def sectors(data: bytes) -> list[bytes]:
    return [data[start : start + 512] for start in range(0, len(data), 512)]


def test_slots_lie_behind_each_other_within_the_length() -> None:
    header = luks.new_header(new_key())
    assert len(header.header) == luks.HEADER_SIZE <= luks.MATERIAL_OFFSET
    (payload, key_bytes) = struct.unpack_from(">II", header.header, PAYLOAD_OFFSET)
    assert (payload * 512, key_bytes) == (header.length, 32)
    ends = luks.MATERIAL_OFFSET
    for number in range(8):
        state, _, _, offset, stripes = struct.unpack_from(">II32sII", header.header, SLOTS + number * 48)
        assert state == (0x00AC71F3 if number == 0 else 0x0000DEAD)
        assert offset * 512 >= ends
        assert offset % 8 == 0
        ends = offset * 512 + key_bytes * stripes
    assert ends <= header.length


@settings(max_examples=10)  # a tenth of a second each, and more on a busy machine
@given(st.binary(min_size=1, max_size=100))
def test_any_passphrase_opens_what_was_made_with_it(passphrase: bytes) -> None:
    assert opens(luks.new_header(passphrase), passphrase)
