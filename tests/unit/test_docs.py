"""What documents point at exists: tests named in the threat model, and the targets of links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
THREAT_MODEL = ROOT / "docs" / "threat-model.md"
MAX_LINE = 200
"""Characters; longer lines of a table do not fit a screen and are not read."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NAMED_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
_CODE_PATH = re.compile(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./-]*\w)/?`")


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def links(document: Path) -> Iterator[str]:
    """Targets inside the repository, without their fragment."""
    for target in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z]+:", target):
            yield path


def missing_tests(text: str) -> list[str]:
    """Those of the tests a text names (```unit/test_x.py::test_y```) that are not there."""
    missing = []
    for file, function in _NAMED_TEST.findall(text):
        path = TESTS / file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not re.search(rf"^(?:async )?def {function}\(|^{function} = ", source, re.MULTILINE):
            missing.append(f"{file}::{function}")
    return missing


def test_every_test_of_the_threat_model_exists() -> None:
    text = THREAT_MODEL.read_text(encoding="utf-8")
    assert len(_NAMED_TEST.findall(text)) > 50
    # A name in another form would not be looked for.
    assert text.count(".py::") == len(_NAMED_TEST.findall(text))
    assert missing_tests(text) == []


def test_test_that_is_not_there_is_found() -> None:
    named = "`unit/test_docs.py::test_test_that_is_not_there_is_found`"
    assert missing_tests(named) == []
    assert missing_tests("`unit/test_docs.py::test_nonesuch`") == ["unit/test_docs.py::test_nonesuch"]
    assert missing_tests("`unit/test_nonesuch.py::test_x`") == ["unit/test_nonesuch.py::test_x"]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_files(document: Path) -> None:
    broken = [target for target in links(document) if not (document.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_paths_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [path for path in _CODE_PATH.findall(text) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_fit_a_screen(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE] == []
