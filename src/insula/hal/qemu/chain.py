"""One disk of a machine as QEMU options: its chain of layers, each with everything about it stated.

Formats and backing files come from the spec: what a file's header says about them is never followed (MC-65). A key is
read by QEMU from an inherited memory file, which the daemon wipes once that was done; it is on no command line and in
no folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from insula.model.block import BlockSource, LayerFormat


@dataclass(frozen=True)
class DiskDescriptors:
    """Numbers of the descriptors the VMM inherits for one disk."""

    layers: tuple[int, ...]
    """Top first."""
    key: int | None = None
    """Memory file with the passphrase of the top layer."""

    def numbers(self) -> tuple[int, ...]:
        return self.layers if self.key is None else (*self.layers, self.key)


def chain_options(name: str, source: BlockSource, fds: DiskDescriptors) -> Iterator[str]:
    """One ``-blockdev`` for each file and one for each format, base first, so that every node names its backing.

    Formats and backing files are stated: what a file's header says about them is never followed (MC-65).
    """
    # What is thrown away at the end need not survive a crash of the host: flushes cost nothing then.
    cache = {"direct": False, "no-flush": source.unlink_top}
    backing: str | None = None
    secret = f"{name}-key"
    if fds.key is not None:
        secret_file = {"qom-type": "secret", "id": secret, "format": "raw", "file": f"/proc/self/fd/{fds.key}"}
        yield from json_option("-object", secret_file)
    for depth in reversed(range(len(source.layers))):
        writable = source.writable and depth == 0
        fdset = fds.layers[depth]
        file_node = f"{name}-file{depth}"
        node = name if depth == 0 else f"{name}-layer{depth}"
        yield from ("-add-fd", f"fd={fdset},set={fdset}")
        yield from json_option(
            "-blockdev",
            {
                "driver": "file",
                "node-name": file_node,
                "filename": f"/dev/fdset/{fdset}",
                "aio": "threads",
                # Two machines writing one file are refused by the lock, whatever the records say.
                "locking": "on",
                "read-only": not writable,
                "auto-read-only": False,
                "discard": "unmap",
                "cache": cache,
            },
        )
        layer: dict[str, object] = {
            "driver": source.layers[depth].format.value,
            "node-name": node,
            "file": file_node,
            "read-only": not writable,
            "auto-read-only": False,
            "discard": "unmap",
            "cache": cache,
        }
        if writable and not source.unlink_top:
            layer["detect-zeroes"] = "unmap"
        if source.layers[depth].format is LayerFormat.QCOW2:
            layer["backing"] = backing
        if fds.key is not None and depth == 0:
            layer["encrypt"] = {"format": "luks", "key-secret": secret}
        yield from json_option("-blockdev", layer)
        backing = node


def json_option(option: str, value: Mapping[str, object]) -> Iterator[str]:
    """An option whose value is JSON: no text in it can start another one."""
    yield from (option, json.dumps(value, separators=(",", ":")))
