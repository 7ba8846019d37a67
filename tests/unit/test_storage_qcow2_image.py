from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.block import GIB, MIB
from insula.storage import files, qcow2_image
from insula.storage.qcow2_image import BadImage


def overlay(path: Path, size: int) -> bytes:
    with files.new_file(path) as fd:
        qcow2_image.write_overlay(fd, size)
    return path.read_bytes()


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


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
    subprocess.run(write, check=True, capture_output=True, timeout=60)
    read = [*write[:3], "-c", "read -P 5 1G 1M", "-c", "read -P 6 2147483136 512", "-c", "read -P 0 0 1M", str(path)]
    done = subprocess.run(read, check=True, capture_output=True, text=True, timeout=60)
    assert "verification failed" not in done.stdout
    qemu_img("check", "-q", "-f", "qcow2", str(path))
    with path.open("rb") as stream:
        assert qcow2_image.read_header(stream.fileno()).size == 2 * GIB


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
    fd = os.memfd_create("overlay")
    try:
        qcow2_image.write_overlay(fd, MIB)
        header = bytearray(os.pread(fd, 104, 0))
    finally:
        os.close(fd)
    header[position] = byte
    try:
        parsed = qcow2_image.parse_header(bytes(header))
    except BadImage:
        return
    assert header[8:20] == bytes(12), "no backing file"
    assert header[72:80] == bytes(8), "no incompatible feature"
    assert parsed.size == int.from_bytes(header[24:32], "big")
