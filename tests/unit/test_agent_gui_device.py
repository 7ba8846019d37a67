"""Frame memory in the guest's sysfs: found whatever else is there, opened once its files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula_agent.gui import device
from insula_agent.gui.device import NoFrames
from insula_proto import limits


def add(devices: Path, address: str, vendor: str, kind: str, *memories: str) -> Path:
    folder = devices / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{kind}\n")
    (folder / "enable").write_text("0\n")
    for name in memories:
        (folder / name).write_bytes(b"pixels")
    return folder


def test_device_is_told_from_others_of_its_maker(tmp_path: Path) -> None:
    add(tmp_path, "0000:00:01.0", "0x1af4", "0x1044")
    add(tmp_path, "0000:00:02.0", "0x8086", "0x1110")
    assert device.find(str(tmp_path)) == []
    folder = add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110")
    assert device.find(str(tmp_path)) == [str(folder)]


def test_device_is_enabled_and_its_memory_opened_for_writing(tmp_path: Path) -> None:
    folder = add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110", "resource0", "resource2")
    fd = device.open_memory(str(tmp_path))
    try:
        assert os.pread(fd, 6, 0) == b"pixels"
        assert os.pwrite(fd, b"x", 0) == 1
    finally:
        os.close(fd)
    assert (folder / "enable").read_text() == "1"


def test_memory_with_combined_writes_is_preferred(tmp_path: Path) -> None:
    folder = add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110", "resource2", "resource2_wc")
    assert device.memory_of(str(folder)) == f"{folder}/resource2_wc"


def test_memory_shared_with_the_session_is_not_taken_for_frames(tmp_path: Path) -> None:
    other = add(tmp_path, "0000:08:00.0", "0x1af4", "0x1110", "resource2")
    os.truncate(other / "resource2", limits.BULK_SIZE)
    assert device.memory_of(str(other)) is None
    frames = add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110", "resource2")
    os.close(device.open_memory(str(tmp_path)))
    assert (frames / "enable").read_text() == "1"
    assert (other / "enable").read_text() == "0\n"


def test_device_that_never_comes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "WAIT_S", 0.05)
    with pytest.raises(NoFrames):
        device.open_memory(str(tmp_path))


def test_device_whose_files_never_come_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "WAIT_S", 0.05)
    add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110")
    with pytest.raises(NoFrames):
        device.open_memory(str(tmp_path))


def test_memory_that_is_there_is_opened_without_waiting_for_it(tmp_path: Path) -> None:
    assert device.open_if_there(str(tmp_path)) is None
    folder = add(tmp_path, "0000:07:00.0", "0x1af4", "0x1110")
    assert device.open_if_there(str(tmp_path)) is None
    (folder / "resource2").write_bytes(b"pixels")
    descriptor = device.open_if_there(str(tmp_path))
    assert descriptor is not None
    os.close(descriptor)
    assert (folder / "enable").read_text() == "1"
