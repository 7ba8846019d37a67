"""``qubes.GetImageRGBA``: an image as its size and raw pixels, RGBA (agent-services §1).

Asked for data that follow it is made for a disposable: the image is taken apart by Pillow, in whose hands the qube may
fall. Icons and files of this qube are for the host's menus.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent.desktop.entries import data_folders
from insula_agent.pixels import image_request
from insula_proto import limits, pixels
from insula_proto.errors import LocalProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

MAX_IMAGE = 1 << 28
"""Bytes of an image that is sent here."""


def _open_source(request: image_request.Request, source: BinaryIO, folders: Sequence[str]) -> BinaryIO:
    """:raise ValueError, OSError: there is no image."""
    from io import BytesIO  # noqa: PLC0415 - as is Pillow, not for what pure functions are tested with

    if request.path:
        return open(request.path, "rb")
    if request.icon:
        for path in image_request.icon_files(request.icon, folders):
            if os.path.isfile(path):
                return open(path, "rb")
        raise ValueError(f"no icon {request.icon}")
    untrusted_data = source.read(MAX_IMAGE + 1)
    if len(untrusted_data) > MAX_IMAGE:
        raise ValueError(f"the image is longer than {MAX_IMAGE} bytes")
    return BytesIO(untrusted_data)


def serve(source: BinaryIO, sink: BinaryIO, folders: Sequence[str]) -> None:
    """:raise ValueError, OSError, LocalProtocolError: no image, or none that can be sent."""
    from PIL import Image  # type: ignore[import-not-found]  # noqa: PLC0415 - only where pixels are made

    request = image_request.parse(source.readline(image_request.MAX_LINE + 1))
    # What Pillow warns of, at half of this, is refused by the size below.
    Image.MAX_IMAGE_PIXELS = limits.PIXELS_MAX_SIDE**2
    formats = [request.format] if request.format else None
    with _open_source(request, source, folders) as file, Image.open(file, formats=formats) as image:
        # Before a pixel of it is made.
        pixels.encode_size(*image.size)
        converted = image.convert("RGBA")
    if request.icon:
        converted.thumbnail((image_request.MAX_ICON, image_request.MAX_ICON))
    sink.write(pixels.encode_size(*converted.size))
    sink.write(converted.tobytes())
    sink.flush()


def main() -> int:
    folders = data_folders(os.environ, os.environ.get("HOME", "/"))
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer, folders)
    except (ValueError, OSError, LocalProtocolError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
