"""``qubes.PdfConvert[+DPI]``: render a document to pixels (agent-services §10). Made for a disposable.

What comes is a line ``--password=…`` if there is one, then the document to the end. What goes is the number of pages,
then each page's size and its pixels; :mod:`insula_proto.pixels` has the form. The document is taken apart by poppler's
programs, in whose hands the disposable may fall: whoever called trusts nothing that comes from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_proto import limits, pixels
from insula_proto.errors import LocalProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

DEFAULT_DPI = 300
MIN_DPI, MAX_DPI = 30, 1200
MAX_DOCUMENT = 1 << 30
"""Bytes."""
PASSWORD = b"--password="
MAX_PASSWORD = 1024
CHUNK = 65536
EXIT_NO_OFFICE = 64
"""Published: an office document, and no office suite to open it with."""
OFFICE = "soffice"
_OFFICE_MAGIC = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
"""Containers of today's and yesterday's office documents."""
MAX_HEADER = 64


class RenderFailed(Exception):
    """The document cannot be rendered; ``code`` is the service's exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def parse_dpi(argument: str) -> int:
    """:raise RenderFailed: not a resolution that is offered."""
    if not argument:
        return DEFAULT_DPI
    if not (argument.isascii() and argument.isdigit() and len(argument) < 5):
        raise RenderFailed("the resolution is a number of dots per inch")
    if not MIN_DPI <= int(argument) <= MAX_DPI:
        raise RenderFailed(f"the resolution is {MIN_DPI} to {MAX_DPI} dots per inch")
    return int(argument)


def split_password(untrusted_data: bytes) -> tuple[str, bytes]:
    """Password and what of the document has come, of the first bytes. :raise RenderFailed: no password's end."""
    if not untrusted_data.startswith(PASSWORD):
        return "", untrusted_data
    line, newline, rest = untrusted_data.partition(b"\n")
    if not newline or len(line) > len(PASSWORD) + MAX_PASSWORD or b"\0" in line:
        raise RenderFailed("the password's line is too long")
    return line[len(PASSWORD) :].decode("utf-8", "replace"), rest


def parse_header(untrusted_header: bytes) -> tuple[int, int]:
    """Width and height of a PPM (P6, 8 bits), of its three lines. :raise RenderFailed:"""
    words = untrusted_header.split()
    if len(words) != 4 or words[0] != b"P6" or words[3] != b"255" or not (words[1] + words[2]).isdigit():
        raise RenderFailed("the page was not rendered")
    return int(words[1]), int(words[2])


def _receive(source: BinaryIO, path: str) -> str:
    """Store the document; its password."""
    head = source.read(CHUNK)
    password, rest = split_password(head)
    size = 0
    with open(path, "wb") as file:
        while rest:
            size += len(rest)
            if size > MAX_DOCUMENT:
                raise RenderFailed(f"the document is longer than {MAX_DOCUMENT} bytes")
            file.write(rest)
            rest = source.read(CHUNK)
    if not size:
        raise RenderFailed("no document came")
    return password


def _as_pdf(path: str, folder: str) -> str:
    """The document itself, or what an office suite makes of it."""
    with open(path, "rb") as file:
        magic = file.read(8)
    if not magic.startswith(_OFFICE_MAGIC):
        return path
    argv = [OFFICE, f"-env:UserInstallation=file://{folder}/office", "--headless", "--convert-to", "pdf"]
    try:
        subprocess.run([*argv, "--outdir", f"{folder}/pdf", path], check=True, stdout=sys.stderr)
    except FileNotFoundError as error:
        raise RenderFailed("an office document, and no office suite here", EXIT_NO_OFFICE) from error
    except subprocess.CalledProcessError as error:
        raise RenderFailed("the office suite did not open it") from error
    return f"{folder}/pdf/document.pdf"


def _unlock(password: str) -> list[str]:
    return ["-opw", password, "-upw", password] if password else []


def _count_pages(path: str, password: str) -> int:
    done = subprocess.run(["pdfinfo", *_unlock(password), path], stdout=subprocess.PIPE, check=False)
    for line in done.stdout.split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"Pages" and value.strip().isdigit():
            return int(value)
    raise RenderFailed("not a document that can be opened")


class Renderer:
    """Renders pages of one document, each by a program of its own."""

    def __init__(self, path: str, password: str, dpi: int) -> None:
        self._argv = ["pdftoppm", "-q", *_unlock(password), "-r", str(dpi)]
        self._path = path

    def send(self, page: int, sink: BinaryIO) -> None:
        """:raise RenderFailed: the page was not rendered whole."""
        if not self._send(page, sink, []):
            # Larger than can be sent; so it is made to fit.
            fitting = ["-scale-to", str(limits.PIXELS_MAX_SIDE)]
            if not self._send(page, sink, fitting):
                raise RenderFailed(f"page {page} has no size that can be sent")

    def _send(self, page: int, sink: BinaryIO, scale: list[str]) -> bool:
        """Whether its size could be sent, and so the page was."""
        argv = [*self._argv, *scale, "-f", str(page), "-l", str(page), self._path]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            try:
                header = b"".join([program.stdout.readline(MAX_HEADER) for _ in range(3)])
                width, height = parse_header(header)
                try:
                    size = pixels.encode_size(width, height)
                except LocalProtocolError:
                    return False
                sink.write(size)
                missing = width * height * pixels.RGB
                while missing:
                    piece = program.stdout.read(min(CHUNK, missing))
                    if not piece:
                        raise RenderFailed(f"page {page} was not rendered whole")
                    sink.write(piece)
                    missing -= len(piece)
            finally:
                program.kill()
        return True


def serve(argument: str, source: BinaryIO, sink: BinaryIO, folder: str) -> None:
    """:raise RenderFailed:"""
    dpi = parse_dpi(argument)
    path = f"{folder}/document"
    password = _receive(source, path)
    path = _as_pdf(path, folder)
    pages = _count_pages(path, password)
    try:
        sink.write(pixels.encode_page_count(pages))
    except LocalProtocolError as error:
        raise RenderFailed(str(error)) from error
    renderer = Renderer(path, password, dpi)
    for page in range(1, pages + 1):
        renderer.send(page, sink)
    sink.flush()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="pdf-") as folder:
        try:
            serve(arguments[0] if arguments else "", sys.stdin.buffer, sys.stdout.buffer, folder)
        except RenderFailed as error:
            sys.stderr.write(f"{error}\n")
            return error.code
        except BrokenPipeError:
            # The caller has seen enough; what is still in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
