"""Documents for tests of what opens them, and a client that calls services in this machine."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def make_pdf(pages: list[str], width: int = 72, height: int = 36) -> bytes:
    """A PDF with a page for each drawing (content stream), ``width`` × ``height`` points."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", ""]
    kids = []
    for drawing in pages:
        number = len(objects) + 1
        kids.append(f"{number} 0 R")
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents {number + 1} 0 R>>")
        objects.append(f"<</Length {len(drawing)}>>stream\n{drawing}\nendstream")
    objects[1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>"
    out, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    out += f"trailer\n<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{out.rindex('xref')}\n%%EOF\n"
    return out.encode()


RED_BOX = "1 0 0 rg 0 0 36 36 re f"
"""Fills the left half of a page of the default size."""
BLUE_PAGE = "0 0 1 rg 0 0 72 36 re f"


def make_png(rows: list[list[tuple[int, int, int]]]) -> bytes:
    """A PNG of RGB pixels, not written by the code under test."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def local_client(folder: Path, answer: str = "") -> dict[str, str]:
    """An environment in which calls run the service's own file here; or ``answer``, a shell command, in its place."""
    client = folder / "qrexec-client-vm"
    service = f'exec "{SRC}/insula_agent/rpc/${{2%%+*}}" "${{2#*+}}"'
    client.write_text(f'#!/bin/sh\nshift\necho "$1 $2" >>"{folder}/calls"\n{answer or service}\n')
    client.chmod(0o755)
    return {
        **os.environ, "QREXEC_CLIENT_PATH": str(client), "INSULA_LIBRARY": str(SRC), "HOME": str(folder / "home"),
    }  # fmt: skip
