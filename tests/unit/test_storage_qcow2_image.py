from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.block import GIB, MIB, BlockLayer, BlockSource, LayerFormat, new_key
from insula.storage import qcow2_image
from insula.storage.luks import new_header
from insula.storage.qcow2_image import BadImage
from insula.testing import guest_disk


def overlay(path: Path, size: int) -> bytes:
    qcow2_image.write_overlay(path, size)
    return path.read_bytes()


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("size", [512, 65536, 512 * MIB, 512 * MIB + 512, 10 * GIB, 4096 * GIB, 16384 * GIB])
def test_empty_overlay_is_what_qemu_calls_sound(tmp_path: Path, size: int) -> None:
    path = tmp_path / "overlay"
    overlay(path, size)
    report = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", str(path)))
    assert report["check-errors"] == 0
    assert "leaks" not in report
    assert "corruptions" not in report
    info = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", str(path)))
    assert info["virtual-size"] == size
    assert "backing-filename" not in info
    assert info["format-specific"]["data"]["compat"] == "1.1"
    assert path.stat().st_blocks * 512 <= 64 * 1024


def test_empty_overlay_holds_what_qemu_writes(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    overlay(path, 2 * GIB)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 5 1G 1M", "-c", "write -P 6 2147483136 512", str(path)]
    subprocess.run(write, check=True, capture_output=True, timeout=120)
    read = [*write[:3], "-c", "read -P 5 1G 1M", "-c", "read -P 6 2147483136 512", "-c", "read -P 0 0 1M", str(path)]
    done = subprocess.run(read, check=True, capture_output=True, text=True, timeout=120)
    assert "verification failed" not in done.stdout
    qemu_img("check", "-q", "-f", "qcow2", str(path))
    with path.open("rb") as stream:
        assert qcow2_image.read_header(stream.fileno()).size == 2 * GIB


def test_empty_overlay_shows_what_an_image_by_qemu_itself_shows(tmp_path: Path) -> None:
    overlay(tmp_path / "ours", GIB)
    qemu_img("create", "-q", "-f", "qcow2", str(tmp_path / "theirs"), "1G")
    # -s: also where data are allocated, and the size
    qemu_img("compare", "-s", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "ours"), str(tmp_path / "theirs"))
    guest_disk.write(BlockSource((BlockLayer(tmp_path / "ours", LayerFormat.QCOW2),), GIB, writable=True), 0, 512, 1)
    with pytest.raises(subprocess.CalledProcessError):
        qemu_img("compare", "-s", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "ours"), str(tmp_path / "theirs"))


def test_header_of_an_image_by_qemu_itself_accepted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "1G")
    assert qcow2_image.parse_header(path.read_bytes()[:104]).size == GIB


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-u", "-b", "/etc/passwd", "-F", "raw"), "backing file"),
        (("-o", "cluster_size=4096"), "header was changed"),
        (("-o", "compat=0.10"), "version 3"),
        (("-o", "extended_l2=on"), "incompatible features"),
    ],
)
def test_image_of_another_kind_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", *options, str(path), "1M")
    with pytest.raises(BadImage, match=message):
        qcow2_image.parse_header(path.read_bytes()[:104])


def test_image_with_external_data_file_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", str(path), "1M")
    with pytest.raises(BadImage, match="incompatible features"):
        qcow2_image.parse_header(path.read_bytes()[:104])


def test_image_with_internal_snapshot_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    overlay(path, MIB)
    qemu_img("snapshot", "-c", "s", str(path))
    with pytest.raises(BadImage, match="header was changed"):
        qcow2_image.parse_header(path.read_bytes()[:104])


@given(st.binary(max_size=200))
def test_any_bytes_raise_bad_image_only(data: bytes) -> None:
    with pytest.raises(BadImage):
        qcow2_image.parse_header(data)


@given(position=st.integers(0, 103), byte=st.integers(0, 255))
def test_changed_header_refused_or_names_nothing_else(position: int, byte: int) -> None:
    header = bytearray(qcow2_image.overlay_image(MIB).pieces[-1][1][:104])
    header[position] = byte
    try:
        parsed = qcow2_image.parse_header(bytes(header))
    except BadImage:
        return
    assert header[8:20] == bytes(12), "no backing file"
    assert header[72:80] == bytes(8), "no incompatible feature"
    assert parsed.size == int.from_bytes(header[24:32], "big")


# Encrypted overlays


def encrypted(path: Path, size: int) -> BlockSource:
    key = new_key()
    qcow2_image.write_encrypted_overlay(path, size, new_header(key))
    return BlockSource((BlockLayer(path, LayerFormat.QCOW2),), size, writable=True, key=key)


@pytest.mark.parametrize("size", [512, 512 * MIB + 512, 10 * GIB, 16384 * GIB])
def test_encrypted_overlay_is_what_qemu_calls_sound_and_as_large_as_a_plain_one(tmp_path: Path, size: int) -> None:
    path = tmp_path / "overlay"
    guest_disk.check(path, encrypted(path, size).key)
    info = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", str(path)))
    assert info["virtual-size"] == size
    luks = info["format-specific"]["data"]["encrypt"]
    assert (luks["format"], luks["cipher-alg"], luks["cipher-mode"], luks["ivgen-alg"], luks["hash-alg"]) == (
        "luks", "aes-128", "xts", "plain64", "sha256",
    )  # fmt: skip
    assert [slot["active"] for slot in luks["slots"]] == [True] + [False] * 7
    assert path.stat().st_blocks * 512 <= 192 * 1024


def test_encrypted_overlay_gives_back_what_was_written_and_keeps_it_off_the_disk(tmp_path: Path) -> None:
    marker, base, path = 0xA7, tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(b"b" * MIB)
    top = encrypted(path, 2 * MIB)
    source = replace(top, layers=(*top.layers, BlockLayer(base, LayerFormat.RAW)))
    guest_disk.write(source, 4096, 8192, marker)
    expected = bytearray(b"b" * MIB + bytes(MIB))
    expected[4096:12288] = bytes([marker]) * 8192
    assert guest_disk.content(source) == expected
    raw = path.read_bytes()
    assert bytes([marker]) * 16 not in raw
    assert b"b" * 16 not in raw, "nor what was copied up from below"
    assert top.key is not None
    assert top.key not in raw
    assert base64.urlsafe_b64decode(top.key) not in raw


def test_plain_overlay_shows_the_marker_that_an_encrypted_one_hides(tmp_path: Path) -> None:
    """The search of the test above finds what is there."""
    path = tmp_path / "overlay"
    overlay(path, MIB)
    guest_disk.write(BlockSource((BlockLayer(path, LayerFormat.QCOW2),), MIB, writable=True), 4096, 8192, 0xA7)
    assert b"\xa7" * 16 in path.read_bytes()


def test_encrypted_overlay_with_another_key_is_not_opened(tmp_path: Path) -> None:
    source = encrypted(tmp_path / "overlay", MIB)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        guest_disk.content(replace(source, key=new_key()))
    assert b"Invalid password" in caught.value.stderr


def test_two_encrypted_overlays_with_one_key_share_no_bytes_of_data(tmp_path: Path) -> None:
    key = new_key()
    ends = []
    for name in ("one", "two"):
        qcow2_image.write_encrypted_overlay(tmp_path / name, MIB, new_header(key))
        source = BlockSource((BlockLayer(tmp_path / name, LayerFormat.QCOW2),), MIB, writable=True, key=key)
        guest_disk.write(source, 0, 64 * 1024, 7)
        ends.append((tmp_path / name).read_bytes()[-64 * 1024 :])
    assert ends[0] != ends[1], "master keys are drawn for each"


def test_encrypted_overlay_is_not_accepted_as_one_to_keep(tmp_path: Path) -> None:
    encrypted(tmp_path / "overlay", MIB)
    with (tmp_path / "overlay").open("rb") as stream, pytest.raises(BadImage, match="header was changed"):
        qcow2_image.read_header(stream.fileno())


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    path.write_bytes(b"somebody's")
    for write in (lambda: overlay(path, MIB), lambda: encrypted(path, MIB)):
        with pytest.raises(FileExistsError):
            write()
    assert path.read_bytes() == b"somebody's"
