"""Persistence: decisions from a disk's first bytes, held against what mkfs and mkswap of this machine write."""

from __future__ import annotations

import struct
import subprocess
import threading
from pathlib import Path

import pytest

from insula_agent import persistence
from insula_agent.persistence import (
    BLANK_SIZE,
    BLANK_STEP,
    PersistenceError,
    find_disk,
    fragments,
    is_blank,
    parse_ext,
    plan_binds,
    plan_private,
    plan_swap,
)
from insula_agent.syscalls import MS_NODEV, MS_NOSUID

SIZE = 64 << 20


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=120)
    return image


def head(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(BLANK_SIZE)


def test_fresh_ext4_needs_nothing(ext4: Path) -> None:
    assert plan_private(parse_ext(head(ext4)), SIZE, is_blank=False) == (False, False, False)


def test_ext4_with_1k_blocks_has_the_right_size(tmp_path: Path) -> None:
    image = tmp_path / "small"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", str(image)], check=True, timeout=120)
    found = parse_ext(head(image))
    assert found is not None
    assert found.size == 8 << 20


def test_grown_disk_is_grown_into(ext4: Path) -> None:
    assert plan_private(parse_ext(head(ext4)), 2 * SIZE, is_blank=False) == (False, False, True)


@pytest.mark.parametrize("state", [0, 2, 3])
def test_ext4_with_errors_or_not_clean_is_checked(ext4: Path, state: int) -> None:
    data = bytearray(head(ext4))
    struct.pack_into("<H", data, 1024 + 0x3A, state)
    assert plan_private(parse_ext(bytes(data)), SIZE, is_blank=False) == (False, True, False)


def test_blank_disk_gets_a_file_system() -> None:
    assert plan_private(None, SIZE, is_blank=True) == (True, False, False)


def test_disk_with_anything_unknown_is_left_alone() -> None:
    with pytest.raises(PersistenceError):
        plan_private(None, SIZE, is_blank=False)


@pytest.mark.parametrize("position", [0, 4096, BLANK_SIZE - 1])
def test_disk_with_a_byte_at_its_beginning_is_not_blank(tmp_path: Path, position: int) -> None:
    image = tmp_path / "disk"
    with image.open("wb+", buffering=0) as file:
        file.truncate(SIZE)
        assert is_blank(file.fileno())
        file.seek(position)
        file.write(b"x")
        assert not is_blank(file.fileno())


def test_byte_behind_the_beginning_leaves_a_disk_blank(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb+", buffering=0) as file:
        file.seek(BLANK_SIZE)
        file.write(b"x")
        assert is_blank(file.fileno())


@pytest.mark.parametrize("size", [0, 512, BLANK_STEP + 512])
def test_small_disk_is_looked_at_to_its_end(tmp_path: Path, size: int) -> None:
    image = tmp_path / "disk"
    with image.open("wb+", buffering=0) as file:
        file.truncate(size)
        assert is_blank(file.fileno())
        file.write(bytes(size) + b"x")
        assert not is_blank(file.fileno())


def test_too_little_is_no_file_system() -> None:
    assert parse_ext(b"\0" * 2047) is None


def test_absurd_block_size_is_no_file_system(ext4: Path) -> None:
    data = bytearray(head(ext4))
    struct.pack_into("<I", data, 1024 + 0x18, 40)
    assert parse_ext(bytes(data)) is None


def test_swap_header_is_what_the_system_takes_for_swap(tmp_path: Path) -> None:
    image = tmp_path / "swap"
    header = plan_swap(SIZE)
    assert header is not None
    with image.open("wb") as file:
        file.write(header)
        file.truncate(SIZE)
    result = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "TYPE", str(image)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == "swap"


def test_swap_is_at_most_one_gib() -> None:
    header = plan_swap(10 << 30)
    assert header is not None
    assert struct.unpack_from("<II", header, 1024) == (1, (1 << 30) // 4096 - 1)


def test_disk_too_small_for_swap_gets_none() -> None:
    assert plan_swap(512 << 10) is None


def test_app_qube_keeps_home_and_usr_local() -> None:
    assert plan_binds("rw-only") == [
        ("/rw/home", "/home", MS_NOSUID | MS_NODEV),
        ("/rw/usrlocal", "/usr/local", 0),
    ]


def test_template_shows_its_own_usr_local() -> None:
    assert plan_binds("full")[1] == ("/usr/local.orig", "/usr/local", 0)


def block(folder: Path, disks: dict[str, str]) -> str:
    for name, serial in disks.items():
        (folder / name).mkdir()
        (folder / name / "serial").write_text(serial)
    return str(folder)


def test_disk_is_found_by_its_serial_whatever_the_order(tmp_path: Path) -> None:
    folder = block(tmp_path, {"vda": "private\n", "vdb": "root", "sr0": "volatile"})
    assert find_disk("private", folder) == "/dev/vda"
    assert find_disk("root", folder) == "/dev/vdb"


def test_disk_that_is_not_virtio_is_not_taken(tmp_path: Path) -> None:
    assert find_disk("private", block(tmp_path, {"sda": "private"})) is None


def test_fragments_are_the_conf_files_in_order(tmp_path: Path) -> None:
    for name in ("20.conf", "10.conf", ".30.conf", "40.txt"):
        (tmp_path / name).touch()
    assert fragments(str(tmp_path)) == [f"{tmp_path}/10.conf", f"{tmp_path}/20.conf"]
    assert fragments(str(tmp_path / "absent")) == []


def test_private_disk_counts_as_mounted_only_where_it_shows(tmp_path: Path) -> None:
    device = tmp_path / "vdb"
    device.touch()
    assert not persistence.is_mounted(str(device), str(tmp_path / "rw"))
    assert not persistence.is_mounted(str(device), str(tmp_path))


def test_size_that_is_enough_is_taken_at_once(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    with image.open("rb") as file:
        assert persistence._size(file.fileno(), 4096) == 4096


def test_size_that_is_too_small_is_given_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork's kernel learns its disk's size from an interrupt that may still be under way."""
    monkeypatch.setattr(persistence, "SIZE_PATIENCE", 120.0)
    image = tmp_path / "disk"
    image.write_bytes(bytes(512))
    with image.open("rb+") as file:
        grown = threading.Timer(0.01, file.truncate, (4096,))
        grown.start()
        assert persistence._size(file.fileno(), 4096) == 4096
        grown.join()


def test_size_that_stays_too_small_is_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "SIZE_PATIENCE", 0.02)
    image = tmp_path / "disk"
    image.write_bytes(bytes(512))
    with image.open("rb") as file:
        assert persistence._size(file.fileno(), 4096) == 512
