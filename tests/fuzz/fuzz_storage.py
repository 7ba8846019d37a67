"""Invariant: an overlay's header and a volume's record, of any bytes, are refused with a StorageError or accepted; an
accepted header names no other file; an accepted record has possible sizes, names layers of the pool's naming only, and
is written back as what it was read as.
"""

from __future__ import annotations

import harness

from insula.model.block import KIB, LayerFormat
from insula.storage import luks, manifest, qcow2_image
from insula.storage.pool import StorageError

VID = "qubes/work/private"
_BASE = manifest.Layer("0123456789abcdef.raw", LayerFormat.RAW, 64 * KIB)
_TOP = manifest.Layer("fedcba9876543210.qcow2", LayerFormat.QCOW2, 64 * KIB)
_RECORD = manifest.first_manifest(VID, (_BASE,), 64 * KIB, 1.0).extended((_BASE, _TOP), 64 * KIB, 1, 2.0)
_HEADER = qcow2_image.overlay_image(64 * KIB).pieces[-1][1]
_ENCRYPTED = qcow2_image.overlay_image(64 * KIB, luks.new_header(b"passphrase")).pieces[-1][1]
SEEDS = [
    b"\0" + _HEADER,
    b"\0" + _ENCRYPTED,
    b"\1" + manifest.encode(_RECORD),
    b"\1" + manifest.encode(_RECORD.opened("0000000000000000.qcow2")),
    b'\1{"version":1,"vid":' + b"[" * 10_000,
    b'\1{"version":1,"vid":"' + VID.encode() + b'","revisions":[{"id":"20261123T101500-000001","created":1,"size":512,'
    b'"chain":[{"file":"0123456789abcdef.raw","format":"raw","size":-512}]}]}',
]


def fuzz_one(data: bytes) -> None:
    try:
        if data[:1] == b"\1":
            record = manifest.decode(data[1:], VID)
            assert all(manifest.is_layer_file(name) for name in record.files)
            layers = [layer for revision in record.revisions for layer in revision.chain]
            assert all(0 < layer.size <= manifest.SIZE_MAX for layer in layers)
            assert manifest.decode(manifest.encode(record), VID) == record
            assert len(record.content_key) == manifest.CONTENT_KEY_DIGITS
        else:
            header = data[1:]
            size = qcow2_image.parse_header(header).size
            assert size > 0
            assert size % 512 == 0
            assert header[8:20] == bytes(12), "a backing file"
            assert header[72:80] == bytes(8), "an incompatible feature"
            assert header[32:36] == bytes(4), "encrypted"
    except StorageError:
        pass


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
