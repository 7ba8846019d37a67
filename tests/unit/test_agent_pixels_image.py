"""Images: the real client and the real service, joined; and services that lie."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixel_files import SRC, local_client, make_png

from insula_agent.pixels import image_request
from insula_agent.pixels.image_request import Request
from insula_agent.pixels.png_writer import PngWriter

CLIENT = SRC / "insula_agent" / "bin" / "qvm-convert-img"
SERVER = SRC / "insula_agent" / "rpc" / "qubes.GetImageRGBA"
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)
ROWS = [[RED, GREEN, BLUE], [BLUE, GREY, RED]]
PIXELS = b"".join(bytes((*pixel, 255)) for row in ROWS for pixel in row)


def convert(env: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [str(CLIENT), *map(str, arguments)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)


def ask(request: bytes, tmp_path: Path) -> subprocess.CompletedProcess[bytes]:
    env = {"INSULA_LIBRARY": str(SRC), "PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(tmp_path), "XDG_DATA_DIRS": "/no"}
    return subprocess.run([SERVER], input=request, env=env, capture_output=True, check=False, timeout=120)


def read_png(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGBA pixels of a PNG with unfiltered rows; checks every chunk's sum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, body, header = 8, b"", b""
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, content = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", data, position + 8 + length)[0] == zlib.crc32(kind + content)
        header, body = (content, body) if kind == b"IHDR" else (header, body + content)
        position += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", header)
    assert rest == [8, 6, 0, 0, 0]
    rows = zlib.decompress(body)
    size = width * 4 + 1
    assert all(rows[begin] == 0 for begin in range(0, len(rows), size))
    return width, height, b"".join(rows[begin + 1 : begin + size] for begin in range(0, len(rows), size))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_png_writer_any_pixels_in_any_split_come_back(width: int, height: int, data: st.DataObject) -> None:
    pixels = data.draw(st.binary(min_size=width * height * 4, max_size=width * height * 4))
    out = bytearray()
    writer = PngWriter(out.extend, width, height)
    rest = pixels
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        writer.pixels(rest[:size])
        rest = rest[size:]
    writer.finish()
    assert read_png(bytes(out)) == (width, height, pixels)


def test_image_becomes_pixels(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(make_png(ROWS))
    done = convert(local_client(tmp_path), tmp_path / "in.png", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    assert read_png((tmp_path / "out.png").read_bytes()) == (3, 2, PIXELS)
    assert (tmp_path / "calls").read_text() == "@dispvm qubes.GetImageRGBA\n"


LIES = {
    "sizes too large": "printf '10001 1\\n'",
    "no size": "printf 'x\\n'",
    "pixels missing": "printf '1 2\\n1234567'",
    "pixels too many": "printf '1 2\\n123456789'",
    "nothing": ":",
    "a failure after all pixels": "printf '1 1\\n1234'; exit 1",
    "endless": "printf '1 1\\n1234'; exec yes",
    "the image itself": "cat",
}


@pytest.mark.parametrize("lie", LIES)
def test_service_that_lies_leaves_no_image(tmp_path: Path, lie: str) -> None:
    """MC-11, MC-22."""
    (tmp_path / "in.png").write_bytes(make_png(ROWS))
    done = convert(local_client(tmp_path, LIES[lie]), tmp_path / "in.png", tmp_path / "out.png")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_image_that_is_there_is_not_overwritten_and_other_formats_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(make_png(ROWS))
    (tmp_path / "out.png").write_text("mine")
    env = local_client(tmp_path)
    assert convert(env, tmp_path / "in.png", tmp_path / "out.png").returncode == 1
    assert (tmp_path / "out.png").read_text() == "mine"
    assert convert(env, tmp_path / "in.png", tmp_path / "out.jpg").returncode == 1
    assert convert(env, "-x", tmp_path / "out2.png").returncode == 2
    assert not (tmp_path / "calls").exists()


def test_service_answers_files_formats_and_icons(tmp_path: Path) -> None:
    image = make_png(ROWS)
    expected = b"3 2\n" + PIXELS
    icons = tmp_path / "icons/hicolor/48x48/apps"
    icons.mkdir(parents=True)
    (icons / "tool.png").write_bytes(image)
    assert ask(b"-\n" + image, tmp_path).stdout == expected
    assert ask(b"png:-\n" + image, tmp_path).stdout == expected
    assert ask(f"{icons}/tool.png\n".encode(), tmp_path).stdout == expected
    assert ask(b"xdgicon:tool\n", tmp_path).stdout == expected


def test_icon_is_at_most_512_pixels(tmp_path: Path) -> None:
    (tmp_path / "pixmaps").mkdir()
    (tmp_path / "pixmaps/large.png").write_bytes(make_png([[GREY] * 1024] * 2))
    out = ask(b"xdgicon:large\n", tmp_path).stdout
    assert out.startswith(b"512 1\n")
    assert len(out) == len(b"512 1\n") + 512 * 4


@pytest.mark.parametrize(
    "request_", [b"-\n", b"-\nnoise", b"gif:-\n" + make_png(ROWS), b"/nowhere\n", b"xdgicon:no\n", b""]
)
def test_service_without_an_image_sends_no_byte(request_: bytes, tmp_path: Path) -> None:
    done = ask(request_, tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr


def test_image_of_too_many_pixels_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """MC-35: 20000 pixels wide, in a file of a few bytes."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    done = ask(b"-\n\x89PNG\r\n\x1a\n" + chunk, tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"-\n", Request()),
        (b"png:-\n", Request(format="PNG")),
        (b"xdgicon:org.x-y\n", Request(icon="org.x-y")),
        (b"/a b\n", Request(path="/a b")),
        (b"a:b\n", Request(path="a:b")),
    ],
)
def test_parse_requests(line: bytes, request_: Request) -> None:
    assert image_request.parse(line) == request_


@pytest.mark.parametrize(
    "line", [b"", b"-", b"\n", b"a\0b\n", b"xdgicon:\n", b"xdgicon:../a\n", b"p/q:-\n", b"x" * 5000]
)
def test_parse_request_that_is_none_refused(line: bytes) -> None:
    """MC-16."""
    with pytest.raises(ValueError, match=r"."):
        image_request.parse(line)


@given(st.binary(max_size=60))
def test_parse_any_bytes_icon_never_leaves_its_folder(data: bytes) -> None:
    """MC-16."""
    try:
        request = image_request.parse(data)
    except ValueError:
        return
    assert "/" not in request.icon
    assert all(
        path.startswith(("/d/icons/hicolor/", "/d/pixmaps/")) for path in image_request.icon_files(request.icon, ["/d"])
    )
