"""What a machine does with its disk, done with QEMU's own tools: for tests of pools, without a machine.

The chain is given as the hypervisor driver gives it: layer by layer with format, nothing from headers; the key of an
encrypted top layer through an inherited descriptor.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import msgspec

from insula.model.block import BlockLayer, BlockSource, LayerFormat

TOOL_TIME_LIMIT_S = 60
_SECRET = "key"


def descriptor(source: BlockSource) -> str:
    """The chain as a ``json:`` file name for QEMU's tools; a key is their secret object ``key``."""
    node: dict[str, object] | None = None
    for number, layer in reversed(list(enumerate(source.layers))):
        below = node
        node = {"driver": layer.format.value, "file": {"driver": "file", "filename": str(layer.path)}}
        if layer.format is LayerFormat.QCOW2:
            node["backing"] = below
        if number == 0 and source.key is not None:
            node["encrypt"] = {"format": "luks", "key-secret": _SECRET}
    return "json:" + msgspec.json.encode(node).decode("ascii")


def write(source: BlockSource, offset: int, length: int, byte: int) -> None:
    """The guest fills a range with ``byte``; 0 becomes an explicit zero range, as a guest's discard does."""
    pattern = "-z" if byte == 0 else f"-P {byte}"
    _run(source.key, "qemu-io", "-c", f"write {pattern} {offset} {length}", descriptor(source))


def grow(source: BlockSource, size: int) -> None:
    """The monitor resizes the disk while the guest runs."""
    _run(source.key, "qemu-io", "-c", f"truncate {size}", descriptor(source))


def content(source: BlockSource) -> bytes:
    """All the guest sees. For small disks."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "content"
        _run(source.key, "qemu-img", "convert", "-O", "raw", descriptor(source), str(target))
        return target.read_bytes()


def check(path: Path, key: bytes | None = None) -> None:
    """:raise subprocess.CalledProcessError: QEMU finds the qcow2 image inconsistent"""
    image = BlockSource((BlockLayer(path, LayerFormat.QCOW2),), 0, writable=False, key=key)
    _run(key, "qemu-img", "check", "-q", descriptor(image))


def _run(key: bytes | None, tool: str, *arguments: str) -> None:
    if key is None:
        subprocess.run([tool, *arguments], check=True, capture_output=True, timeout=TOOL_TIME_LIMIT_S)
        return
    fd = os.memfd_create("key", 0)
    try:
        os.write(fd, key)
        secret = ("--object", f"secret,id={_SECRET},file=/proc/self/fd/{fd}")
        # qemu-img takes it after its command, qemu-io first.
        command = [tool, *secret, *arguments] if tool == "qemu-io" else [tool, arguments[0], *secret, *arguments[1:]]
        subprocess.run(command, check=True, capture_output=True, timeout=TOOL_TIME_LIMIT_S, pass_fds=(fd,))
    finally:
        os.close(fd)
