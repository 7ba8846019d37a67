"""The file system that new private volumes hold, as its own tools see it."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from insula.model.block import GIB, MIB
from insula.storage import ext4, files
from insula_agent import persistence

TOOLS = "/usr/sbin"


def disk(path: Path, size: int) -> Path:
    files.create_sparse(path, size)
    return path


def tool(name: str, *arguments: str) -> str:
    command = [f"{TOOLS}/{name}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("size", [16 * MIB, 100 * MIB + 512, 2 * GIB, 100 * GIB])
def test_formatted_disk_is_sound_empty_and_sparse(tmp_path: Path, size: int) -> None:
    path = disk(tmp_path / "disk", size)
    ext4.format_disk(path)
    tool("e2fsck", "-f", "-n", str(path))
    assert path.stat().st_size == size
    assert files.allocated(path) <= max(4 * MIB, size // 1024)
    listed = tool("debugfs", "-R", "ls -p /", str(path)).split()
    assert [line.split("/")[5] for line in listed] == [".", "..", "lost+found"]


def test_agent_finds_a_file_system_that_needs_nothing(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", 2 * GIB)
    ext4.format_disk(path)
    found = persistence.parse_ext(head(path))
    assert found is not None
    assert persistence.plan_private(found, 2 * GIB, is_blank=False) == (False, False, False)
    assert persistence.plan_private(found, 3 * GIB, is_blank=False) == (False, False, True), "grows with its disk"


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def test_file_system_grows_with_its_disk(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", 2 * GIB)
    ext4.format_disk(path)
    os.truncate(path, 20 * GIB)
    tool("resize2fs", str(path))
    tool("e2fsck", "-f", "-n", str(path))
    found = persistence.parse_ext(head(path))
    assert found is not None
    assert found.size == 20 * GIB


def test_file_system_is_the_stated_one_whatever_the_host_is_configured_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mke2fs.conf"
    config.write_text("[defaults]\n base_features = sparse_super\n blocksize = 1024\n reserved_ratio = 20\n")
    monkeypatch.setenv("MKE2FS_CONFIG", str(config))
    path = disk(tmp_path / "disk", 2 * GIB)
    ext4.format_disk(path)
    lines = dict(line.split(":", 1) for line in tool("dumpe2fs", "-h", str(path)).splitlines() if ":" in line)
    facts = {name: value.strip() for name, value in lines.items()}
    assert set(facts["Filesystem features"].split()) == set(ext4.FEATURES)
    assert facts["Reserved block count"] == "0"
    assert facts["Block size"] == "4096"
    assert facts["Filesystem volume name"] == "<none>"
    assert facts["Filesystem state"] == "clean"


def test_guest_has_no_inode_tables_left_to_write(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", 2 * GIB)
    ext4.format_disk(path)
    groups = [line for line in tool("dumpe2fs", str(path)).splitlines() if line.startswith("Group ") and "(" in line]
    assert len(groups) == 16
    assert all("ITABLE_ZEROED" in group for group in groups)


def test_two_disks_have_different_identities(tmp_path: Path) -> None:
    identities = set()
    for name in ("one", "two"):
        ext4.format_disk(disk(tmp_path / name, 16 * MIB))
        shown = tool("dumpe2fs", "-h", str(tmp_path / name)).splitlines()
        identities |= {line for line in shown if line.startswith(("Filesystem UUID", "Directory Hash Seed"))}
    assert len(identities) == 4


def test_disk_too_small_for_a_file_system_stays_blank(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", MIB)
    ext4.format_or_leave_blank(path)
    assert path.read_bytes() == bytes(MIB)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "cannot run mke2fs"),
        ('for last; do :; done; printf half | dd of="$last" conv=notrunc 2>&-; echo no room >&2; exit 1', "no room"),
        ("exec sleep 60", "took longer"),
    ],
)
def test_disk_is_left_blank_where_the_tool_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str | None, message: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if script is not None:
        (folder / "mke2fs").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "mke2fs").chmod(0o755)
    path_variable = str(folder) if script is None else f"{folder}:/usr/bin:/bin"
    monkeypatch.setattr(ext4, "_ENVIRONMENT", {"PATH": path_variable})
    if message == "took longer":
        monkeypatch.setattr(ext4, "TIME_LIMIT_S", 0.5)
    path = disk(tmp_path / "disk", 16 * MIB)
    with caplog.at_level(logging.WARNING, logger="insula.storage.ext4"):
        ext4.format_or_leave_blank(path)
    assert path.read_bytes() == bytes(16 * MIB)
    assert message in caplog.text
