"""One disk of a machine as QEMU options: its chain of layers, each with everything about it stated.

Formats and backing files come from the spec: what a file's header says about them is never followed (MC-65). A key is
read by QEMU from an inherited memory file, which the daemon wipes once that was done; it is on no command line and in
no folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from insula.model.block import BlockSource, LayerFormat

_CHILDREN = ("file", "backing")


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
    """One ``-blockdev`` for each file and one for each format, base first, so that every node names its backing."""
    if fds.key is not None:
        yield from json_option("-object", key_object(name, fds.key))
    for number in fds.layers:
        yield from ("-add-fd", f"fd={number},set={number}")
    for node in chain_nodes(name, source, fds.layers, is_encrypted=fds.key is not None):
        yield from json_option("-blockdev", node)


def key_object(name: str, key: int) -> dict[str, object]:
    """The secret of the chain's top layer, read from the VMM's descriptor ``key``."""
    return {"qom-type": "secret", "id": _key_id(name), "format": "raw", "file": f"/proc/self/fd/{key}"}


def _key_id(name: str) -> str:
    return f"{name}-key"


def file_node(name: str, depth: int) -> str:
    """Node of the file of a layer."""
    return f"{name}-file{depth}"


def layer_node(name: str, depth: int) -> str:
    """Node of a layer; the top one is the chain's."""
    return name if depth == 0 else f"{name}-layer{depth}"


def chain_nodes(
    name: str, source: BlockSource, fdsets: Sequence[int], *, is_encrypted: bool
) -> Iterator[dict[str, object]]:
    """Options of all nodes of a chain, base first.

    Formats and backing files are stated: what a file's header says about them is never followed (MC-65).

    :param fdsets: where the layers' files are, top first.
    """
    # What is thrown away at the end need not survive a crash of the host: flushes cost nothing then.
    cache = {"direct": False, "no-flush": source.unlink_top}
    backing: str | None = None
    for depth in reversed(range(len(source.layers))):
        writable = source.writable and depth == 0
        yield {
            "driver": "file",
            "node-name": file_node(name, depth),
            "filename": f"/dev/fdset/{fdsets[depth]}",
            "aio": "threads",
            # Two machines writing one file are refused by the lock, whatever the records say.
            "locking": "on",
            "read-only": not writable,
            "auto-read-only": False,
            "discard": "unmap",
            "cache": cache,
        }
        layer: dict[str, object] = {
            "driver": source.layers[depth].format.value,
            "node-name": layer_node(name, depth),
            "file": file_node(name, depth),
            "read-only": not writable,
            "auto-read-only": False,
            "discard": "unmap",
            "cache": cache,
        }
        if writable and not source.unlink_top:
            layer["detect-zeroes"] = "unmap"
        if source.layers[depth].format is LayerFormat.QCOW2:
            layer["backing"] = backing
        if is_encrypted and depth == 0:
            layer["encrypt"] = {"format": "luks", "key-secret": _key_id(name)}
        yield layer
        backing = layer_node(name, depth)


def chain_tree(name: str, source: BlockSource, fdsets: Sequence[int], *, is_encrypted: bool) -> dict[str, object]:
    """The chain as one value: what a node names is inside it."""
    made: dict[object, dict[str, object]] = {}
    for node in chain_nodes(name, source, fdsets, is_encrypted=is_encrypted):
        made[node["node-name"]] = {
            key: made.get(value, value) if key in _CHILDREN else value for key, value in node.items()
        }
    return made[name]


def json_option(option: str, value: Mapping[str, object]) -> Iterator[str]:
    """An option whose value is JSON: no text in it can start another one."""
    yield from (option, json.dumps(value, separators=(",", ":")))
