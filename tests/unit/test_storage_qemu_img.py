"""The sandbox around qemu-img, seen from inside and by what it leaves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from insula.model.block import MIB, BlockLayer, LayerFormat
from insula.storage import files, qcow2_image, qemu_img
from insula.storage.pool import StorageError


def raw(path: Path, content: bytes) -> BlockLayer:
    path.write_bytes(content)
    return BlockLayer(path, LayerFormat.RAW)


def empty_overlay(path: Path, size: int) -> BlockLayer:
    qcow2_image.write_overlay(path, size)
    return BlockLayer(path, LayerFormat.QCOW2)


def put_in_place_of_the_tool(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a shell script run in its sandbox."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (fake / "qemu-img").chmod(0o755)
    sandbox = [*qemu_img._SANDBOX, "--ro-bind", str(fake), "/fake", "--setenv", "PATH", "/fake:/usr/bin"]
    monkeypatch.setattr(qemu_img, "_SANDBOX", tuple(sandbox))


async def flatten_within(tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a shell script in place of the tool; returns the message it fails with."""
    put_in_place_of_the_tool(tool, tmp_path, monkeypatch)
    source = raw(tmp_path / "source", b"x" * MIB)
    raw(tmp_path / "target", bytes(MIB))
    with pytest.raises(StorageError) as caught:
        await qemu_img.flatten([source], tmp_path / "target", MIB)
    return str(caught.value)


async def test_flatten_writes_the_content_of_the_chain(tmp_path: Path) -> None:
    base, top = raw(tmp_path / "base", b"b" * MIB), empty_overlay(tmp_path / "top", 2 * MIB)
    target = tmp_path / "target"
    files.create_sparse(target, 2 * MIB)
    await qemu_img.flatten([base, top], target, 2 * MIB)
    assert target.read_bytes() == b"b" * MIB + bytes(MIB)


async def test_merge_leaves_the_upper_layer_as_it_was(tmp_path: Path) -> None:
    base, top = raw(tmp_path / "base", b"b" * MIB), empty_overlay(tmp_path / "top", MIB)
    await qemu_img.merge([base, top], MIB)
    assert base.path.read_bytes() == b"b" * MIB
    with top.path.open("rb") as stream:
        assert qcow2_image.read_header(stream.fileno()).size == MIB


async def test_tool_sees_only_its_files_and_can_do_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = "ls / /image >&2; ls /proc /sys /etc /root /home /tmp 2>/dev/null >&2; exit 3"
    seen = await flatten_within(tmp_path, look, monkeypatch)
    found = {word for word in seen.partition("(3): ")[2].split() if not word.endswith(":")}
    assert found == {"0", "1", "bin", "dev", "fake", "image", "lib", "lib64", "usr"}


async def test_tool_has_no_capability_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without /proc the limits are asked for by trying.
    attempts = (
        "chown 1:1 /image/1 2>/dev/null && echo chown >&2; mount -t tmpfs none /dev 2>/dev/null && echo mount >&2;"
        "unshare -r true 2>/dev/null && echo unshare >&2; echo x 2>/dev/null >/image/0 && echo write >&2;"
        "echo x 2>/dev/null >/usr/x && echo usr >&2; ulimit -c >&2; exit 1"
    )
    message = await flatten_within(tmp_path, attempts, monkeypatch)
    assert message.endswith("(1): 0"), message
    assert (tmp_path / "source").read_bytes() == b"x" * MIB


async def test_output_beyond_its_size_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = await flatten_within(
        tmp_path, "dd if=/dev/zero of=/image/1 bs=1M count=200 status=none; exit 5", monkeypatch
    )
    assert "(5)" in message or "(-" in message or "153" in message
    assert (tmp_path / "target").stat().st_size <= MIB + MIB // 1000 + qemu_img.FILE_SLACK


async def test_message_of_the_tool_is_cut_and_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shout = r"i=0; while [ $i -lt 3000 ]; do printf '\033[31mevil\a\n' >&2; i=$((i+1)); done; exit 1"
    message = await flatten_within(tmp_path, shout, monkeypatch)
    assert message.isprintable()
    assert len(message) < qemu_img.MESSAGE_MAX + 100


async def test_tool_that_hangs_is_ended_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_img, "TIME_LIMIT_S", 0.3)
    assert "took longer" in await flatten_within(tmp_path, "sleep 1000", monkeypatch)


@pytest.mark.parametrize("loop_steps", [0, 1, 2, 4, 8, 16, 32])
async def test_cancelled_run_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop_steps: int
) -> None:
    # One that would not be done before it is cancelled.
    put_in_place_of_the_tool("sleep 1000", tmp_path, monkeypatch)
    base, top = raw(tmp_path / "base", b"b" * MIB), empty_overlay(tmp_path / "top", MIB)
    task = asyncio.ensure_future(qemu_img.merge([base, top], MIB))
    for _ in range(loop_steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _names(p, tmp_path)]
    assert left == []


def _names(process: Path, folder: Path) -> bool:
    try:
        return os.fsencode(folder) in (process / "cmdline").read_bytes()
    except OSError:
        return False


async def test_missing_sandbox_program_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="bubblewrap"):
        await qemu_img.flatten([raw(tmp_path / "a", b"")], tmp_path / "b", MIB)
