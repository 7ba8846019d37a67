"""Documents: the real client and the real service, joined; and services that lie."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pixel_files import BLUE_PAGE, RED_BOX, SRC, local_client, make_pdf

from insula_agent.pixels import pdf_client, pdf_server
from insula_agent.pixels.pdf_server import RenderFailed

CLIENT = SRC / "insula_agent" / "bin" / "qvm-convert-pdf"
SERVER = SRC / "insula_agent" / "rpc" / "qubes.PdfConvert"
SMALL = "100"
"""Dots per inch: 100 × 50 pixels a page of the default size."""


def convert(env: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [str(CLIENT), *map(str, arguments)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)


def rendered(path: Path) -> list[tuple[int, int, bytes]]:
    """Width, height and pixels of each page, by poppler."""
    pages = []
    count = subprocess.run(["pdfinfo", path], capture_output=True, check=True, text=True, timeout=120).stdout
    for page in range(1, int(count.partition("Pages:")[2].split()[0]) + 1):
        argv = ["pdftoppm", "-r", SMALL, "-f", str(page), "-l", str(page), path]
        pages.append(read_ppm(subprocess.run(argv, capture_output=True, check=True, timeout=120).stdout))
    return pages


def read_ppm(data: bytes) -> tuple[int, int, bytes]:
    magic, width, height, _ = data.split(None, 3)
    assert magic == b"P6"
    return int(width), int(height), data[-int(width) * int(height) * 3 :]


def images(path: Path) -> list[tuple[int, int, bytes]]:
    """Width, height and pixels of each image in a PDF, by poppler."""
    folder = path.with_suffix(".images")
    folder.mkdir()
    subprocess.run(["pdfimages", path, folder / "image"], check=True, timeout=120)
    return [read_ppm(image.read_bytes()) for image in sorted(folder.iterdir())]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "paper.pdf"
    path.write_bytes(make_pdf([RED_BOX, BLUE_PAGE]))
    return path


def test_document_becomes_pixels_and_the_original_is_put_aside(document: Path, tmp_path: Path) -> None:
    before = rendered(document)
    original = document.read_bytes()
    done = convert(local_client(tmp_path), "-r", SMALL, document)
    assert done.returncode == 0, done.stderr
    trusted = tmp_path / "paper.trusted.pdf"
    assert images(trusted) == before
    assert [page[:2] for page in rendered(trusted)] == [page[:2] for page in before] == [(100, 50), (100, 50)]
    assert not document.exists()
    assert (tmp_path / "home/QubesUntrustedPDFs/paper.pdf").read_bytes() == original
    assert (tmp_path / "calls").read_text() == f"@dispvm qubes.PdfConvert+{SMALL}\n"


def test_nothing_of_the_document_is_in_the_result(tmp_path: Path) -> None:
    document = tmp_path / "x.pdf"
    document.write_bytes(make_pdf([f"% A-SECRET-COMMENT\n{RED_BOX}"]))
    assert convert(local_client(tmp_path), "-r", SMALL, document).returncode == 0
    data = (tmp_path / "x.trusted.pdf").read_bytes()
    assert b"SECRET" not in data
    for word in (b"/JavaScript", b"/JS", b"/OpenAction", b"/AA", b"/URI", b"/EmbeddedFile", b"/Launch"):
        assert word not in data


def test_name_taken_in_the_archive_is_not_overwritten(document: Path, tmp_path: Path) -> None:
    archive = tmp_path / "aside"
    archive.mkdir()
    (archive / "paper.pdf").write_text("an earlier one")
    assert convert(local_client(tmp_path), "-r", SMALL, "-a", archive, document).returncode == 0
    assert (archive / "paper.pdf").read_text() == "an earlier one"
    assert (archive / "1-paper.pdf").read_bytes().startswith(b"%PDF")


def test_result_that_is_there_is_not_overwritten(document: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "paper.trusted.pdf"
    trusted.write_text("mine")
    done = convert(local_client(tmp_path), document)
    assert done.returncode == 1
    assert "there already" in done.stderr
    assert trusted.read_text() == "mine"
    assert document.exists()


def test_in_place_takes_the_name(document: Path, tmp_path: Path) -> None:
    before = rendered(document)
    assert convert(local_client(tmp_path), "-i", "-r", SMALL, document).returncode == 0
    assert images(document) == before
    assert b"/FlateDecode" in document.read_bytes()
    assert not (tmp_path / "home").exists()


def test_one_of_several_fails_the_others_are_converted(document: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_text("not a document")
    done = convert(local_client(tmp_path), "-r", SMALL, tmp_path / "bad.pdf", tmp_path / "none.pdf", document)
    assert done.returncode == 1
    assert (tmp_path / "paper.trusted.pdf").exists()
    assert (tmp_path / "bad.pdf").exists()
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


LIES = {
    "sizes too large": "printf '1\\n10001 1\\n'",
    "too many pages": "printf '10001\\n'",
    "no size": "printf '1\\nwide high\\n'",
    "pixels missing": "printf '1\\n2 2\\n12345678901'",
    "pixels too many": "printf '1\\n2 2\\n1234567890123'",
    "a page missing": "printf '2\\n1 1\\n123'",
    "nothing": ":",
    "a failure after all pixels": "printf '1\\n1 1\\n123'; exit 1",
    "refused": "exit 126",
    "an office document": "exit 64",
    "endless": "printf '1\\n1 1\\n123'; exec yes",
    "a PDF": f"cat '{__file__}'",
}


WORDS = {"refused": "was refused", "an office document": "office suite", "a failure after all pixels": "ended with 1"}


@pytest.mark.parametrize("lie", LIES)
def test_service_that_lies_leaves_the_document_and_no_result(document: Path, tmp_path: Path, lie: str) -> None:
    """MC-11, MC-22: what is not sizes and pixels is refused."""
    before = document.read_bytes()
    done = convert(local_client(tmp_path, LIES[lie]), document)
    assert done.returncode == 1
    assert WORDS.get(lie, "") in done.stderr
    assert "Traceback" not in done.stderr
    assert document.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pdf*")] == ["paper.pdf"]


def test_output_longer_than_its_limit_is_given_up(
    document: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MC-08: noise that cannot be compressed."""
    env = local_client(tmp_path, "printf '1\\n200 200\\n'; exec head -c 120000 /dev/urandom")
    monkeypatch.setattr(pdf_client, "MAX_OUTPUT", 50_000)
    monkeypatch.setenv("QREXEC_CLIENT_PATH", env["QREXEC_CLIENT_PATH"])
    options = pdf_client.parse_options([str(document)])
    assert options is not None
    with pytest.raises(pdf_client.ConversionFailed, match="longer than 50000"):
        pdf_client.convert(str(document), options)
    assert [path.name for path in tmp_path.glob("*.pdf*")] == ["paper.pdf"]


def test_password_goes_before_the_document(document: Path, tmp_path: Path) -> None:
    env = local_client(tmp_path, f"cat >'{tmp_path}/sent'; exit 1")
    convert(env, "-p", "pass word", document)
    assert (tmp_path / "sent").read_bytes() == b"--password=pass word\n" + document.read_bytes()


def test_service_understands_a_password_line(document: Path) -> None:
    sent = b"--password=unneeded\n" + document.read_bytes()
    done = subprocess.run([SERVER, SMALL], input=sent, env=SERVER_ENV, capture_output=True, check=False, timeout=120)
    assert done.stdout.startswith(b"2\n100 50\n")
    assert len(done.stdout) == len(b"2\n") + 2 * (len(b"100 50\n") + 100 * 50 * 3)


SERVER_ENV = {"INSULA_LIBRARY": str(SRC), "PATH": "/usr/bin:/bin"}


def test_page_too_large_to_be_sent_is_made_to_fit(tmp_path: Path) -> None:
    document = make_pdf([RED_BOX], width=14400, height=10)
    done = subprocess.run([SERVER, "72"], input=document, env=SERVER_ENV, capture_output=True, check=False, timeout=120)
    count, size, pixels = done.stdout.split(b"\n", 2)
    width, height = map(int, size.split())
    assert (count, width) == (b"1", 10000)
    assert len(pixels) == width * height * 3


@pytest.mark.parametrize(
    ("sent", "code"), [(b"", 1), (b"%PDF-1.4 nothing", 1), (b"--password=x", 1), (b"PK\3\4office", 64)]
)
def test_service_cannot_open_it_says_so_by_its_code(sent: bytes, code: int, tmp_path: Path) -> None:
    env = {**SERVER_ENV, "TMPDIR": str(tmp_path)}
    done = subprocess.run([SERVER], input=sent, env=env, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (code, b"")
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["x", "29", "1201", "-1", "1e2", "٣٠٠", "00000300"])
def test_resolution_that_is_not_offered_refused(argument: str) -> None:
    with pytest.raises(RenderFailed):
        pdf_server.parse_dpi(argument)
    assert pdf_client.parse_options(["-r", argument, "x.pdf"]) is None


@pytest.mark.parametrize("header", [b"", b"P5\n1 1\n255\n", b"P6\n1\n255\n", b"P6\n-1 1\n255\n", b"P6\n1 1\n65535\n"])
def test_header_that_is_no_ppm_refused(header: bytes) -> None:
    with pytest.raises(RenderFailed):
        pdf_server.parse_header(header)


@pytest.mark.parametrize("arguments", [[], ["-x", "a"], ["-r"], ["-p", "a\nb", "c"], ["-i"]])
def test_options_not_understood(arguments: list[str]) -> None:
    assert pdf_client.parse_options(arguments) is None


def test_target_that_looks_like_an_option_is_a_target(document: Path, tmp_path: Path) -> None:
    """MC-17."""
    assert convert(local_client(tmp_path, "exit 126"), "-t", "-x", document).returncode == 1
    assert (tmp_path / "calls").read_text() == "-x qubes.PdfConvert+300\n"
