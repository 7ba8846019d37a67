"""What a machine does with its disk, done with QEMU's own tools: for tests of pools, without a machine.

The chain is given as the hypervisor driver gives it: layer by layer with format, nothing from headers.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import msgspec

from insula.model.block import BlockSource, LayerFormat

TOOL_TIME_LIMIT_S = 60


def descriptor(source: BlockSource) -> str:
    """The chain as a ``json:`` file name for QEMU's tools."""
    node: dict[str, object] | None = None
    for layer in reversed(source.layers):
        below = node
        node = {"driver": layer.format.value, "file": {"driver": "file", "filename": str(layer.path)}}
        if layer.format is LayerFormat.QCOW2:
            node["backing"] = below
    return "json:" + msgspec.json.encode(node).decode("ascii")


def write(source: BlockSource, offset: int, length: int, byte: int) -> None:
    """The guest fills a range with ``byte``; 0 becomes an explicit zero range, as a guest's discard does."""
    pattern = "-z" if byte == 0 else f"-P {byte}"
    _run("qemu-io", "-c", f"write {pattern} {offset} {length}", descriptor(source))


def grow(source: BlockSource, size: int) -> None:
    """The monitor resizes the disk while the guest runs."""
    _run("qemu-io", "-c", f"truncate {size}", descriptor(source))


def content(source: BlockSource) -> bytes:
    """All the guest sees. For small disks."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "content"
        _run("qemu-img", "convert", "-O", "raw", descriptor(source), str(target))
        return target.read_bytes()


def check(path: Path) -> None:
    """:raise subprocess.CalledProcessError: QEMU finds the qcow2 image inconsistent"""
    _run("qemu-img", "check", "-q", "-f", "qcow2", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TOOL_TIME_LIMIT_S)
