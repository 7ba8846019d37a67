"""``qvm-convert-pdf``: have documents opened in a disposable, and make PDFs of the pixels that come back.

Nothing of a document is parsed here, and of the answer only decimal sizes (:mod:`insula_proto.pixels`). What comes is
written under a temporary name and gets its own when it is whole; then the original is put aside, not deleted.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import remote
from insula_agent.client_call import EXIT_REFUSED
from insula_agent.pixels.pdf_writer import PdfTooLong, PdfWriter
from insula_proto import limits, pixels
from insula_proto.errors import RemoteProtocolError
from insula_proto.pixels import PageCount, PageEnded, PageStarted, PixelDecoder, PixelsReceived

SERVICE = "qubes.PdfConvert"
DISPOSABLE = "@dispvm"
DEFAULT_DPI = 300
MIN_DPI, MAX_DPI = 30, 1200
ARCHIVE = "QubesUntrustedPDFs"
"""Folder in the home for the originals (published)."""
SUFFIX = ".trusted.pdf"
MAX_OUTPUT = 4 << 30
"""Bytes of a PDF: pixels that cannot be compressed must not fill this qube's disk unnoticed."""
MAX_NAMES = 1000
"""Numbers tried for an original whose name is taken in the archive."""
EXIT_NO_OFFICE = 64

USAGE = f"""usage: qvm-convert-pdf [-r DPI] [-a FOLDER | -i] [-p PASSWORD] [-t QUBE] FILE…

Each document is opened in a disposable that is thrown away; FILE{SUFFIX} is made of the pixels of its pages.

  -r, --resolution DPI   dots per inch, {MIN_DPI} to {MAX_DPI} (default {DEFAULT_DPI})
  -a, --archive FOLDER   where originals are put (default ~/{ARCHIVE})
  -i, --in-place         the new document takes the name of the old one, which is deleted
  -p, --password WORD    opens the documents; the new ones have none
  -t, --target QUBE      open them in this qube (default {DISPOSABLE}: a new disposable for each)
"""


class ConversionFailed(Exception):
    """The document was not converted; nothing of it was changed."""


class Options:
    __slots__ = ("archive", "dpi", "files", "in_place", "password", "target")

    def __init__(self) -> None:
        self.dpi = DEFAULT_DPI
        self.archive = os.path.join(os.path.expanduser("~"), ARCHIVE)
        self.in_place = False
        self.password = ""
        self.target = DISPOSABLE
        self.files: list[str] = []


def parse_options(arguments: list[str]) -> Options | None:
    """Return the options; None if they are not understood."""
    options = Options()
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if option in ("-i", "--in-place"):
            options.in_place = True
        elif option in ("-r", "--resolution") and rest:
            word = rest.pop(0)
            if not (word.isascii() and word.isdigit() and len(word) < 5 and MIN_DPI <= int(word) <= MAX_DPI):
                return None
            options.dpi = int(word)
        elif option in ("-a", "--archive") and rest:
            options.archive = rest.pop(0)
        elif option in ("-p", "--password") and rest:
            options.password = rest.pop(0)
        elif option in ("-t", "--target") and rest:
            options.target = rest.pop(0)
        elif option == "--":
            options.files += rest
            break
        elif option.startswith("-"):
            return None
        else:
            options.files.append(option)
    return options if options.files and "\n" not in options.password else None


class _Document:
    """Feeds what comes into a PDF."""

    def __init__(self, file_descriptor: int, dpi: int) -> None:
        self._fd = file_descriptor
        self._decoder = PixelDecoder(pixels.RGB)
        self._writer = PdfWriter(self._write, dpi, MAX_OUTPUT)
        self.pages = 0

    def take(self, untrusted_data: bytes) -> None:
        for event in self._decoder.receive(untrusted_data):
            if isinstance(event, PixelsReceived):
                self._writer.pixels(event.data)
            elif isinstance(event, PageStarted):
                self._writer.begin_page(event.width, event.height)
            elif isinstance(event, PageEnded):
                self._writer.end_page()
                self.pages += 1
            else:
                assert isinstance(event, PageCount)
                assert event.pages <= limits.PIXELS_MAX_PAGES

    def finish(self) -> None:
        self._decoder.end()
        self._writer.finish()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _receive(call: remote.Call, document: _Document) -> str:
    """Take the whole answer; what is wrong with it."""
    try:
        remote.receive(call.output, document.take)
    except (RemoteProtocolError, PdfTooLong) as error:
        # What it still says is of no use.
        call.hang_up()
        return str(error)
    try:
        document.finish()
    except (RemoteProtocolError, PdfTooLong) as error:
        return str(error)
    return ""


def _fetch(options: Options, source: int, sink: int) -> int:
    """Write the PDF to ``sink``; the number of its pages. :raise ConversionFailed:"""
    password = f"--password={options.password}\n".encode("utf-8", "surrogateescape") if options.password else b""
    feeding = remote.feed(password, source) if password else source
    try:
        call = remote.call(options.target, f"{SERVICE}+{options.dpi}", feeding)
    finally:
        if feeding != source:
            os.close(feeding)
    document = _Document(sink, options.dpi)
    problem = ""
    try:
        problem = _receive(call, document)
    finally:
        code = call.wait()
    if code == EXIT_NO_OFFICE:
        problem = "it needs an office suite, which the disposable's template does not have"
    elif code == EXIT_REFUSED:
        problem = "the call was refused"
    elif code and not problem:
        problem = f"the call ended with {code}"
    if problem:
        raise ConversionFailed(problem)
    return document.pages


def _put_aside(path: str, folder: str) -> str:
    """Move the original into the archive under a name that is free there; the new path."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    name = os.path.basename(path)
    for number in range(MAX_NAMES):
        target = os.path.join(folder, f"{number}-{name}" if number else name)
        try:
            # The name is taken at once and only if it is free; the rename then replaces what is ours.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            continue
        try:
            os.rename(path, target)
        except OSError:
            os.unlink(target)
            raise
        return target
    raise ConversionFailed(f"{folder} has {MAX_NAMES} files called {name}")


def convert(path: str, options: Options) -> str:
    """Convert one; what to tell of it. :raise ConversionFailed: :raise OSError:"""
    stem = path[:-4] if path.lower().endswith(".pdf") else path
    trusted = stem + SUFFIX
    if not options.in_place and os.path.lexists(trusted):
        raise ConversionFailed(f"{trusted} is there already")
    part = f"{trusted}.part"
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sink = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            pages = _fetch(options, source, sink)
            os.fsync(sink)
        except BaseException:
            os.unlink(part)
            raise
        finally:
            os.close(sink)
    finally:
        os.close(source)
    if options.in_place:
        os.rename(part, path)
        return f"{path}: {pages} pages, in place"
    os.rename(part, trusted)
    return f"{trusted}: {pages} pages; the original is {_put_aside(path, options.archive)}"


def main(arguments: list[str]) -> int:
    options = parse_options(arguments)
    if options is None:
        sys.stderr.write(USAGE)
        return 2
    code = 0
    for path in options.files:
        try:
            sys.stdout.write(f"{convert(path, options)}\n")
            sys.stdout.flush()
        except (ConversionFailed, OSError) as error:
            sys.stderr.write(f"{path}: {error}\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
