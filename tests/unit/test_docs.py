"""What documents point at exists: tests named in the threat model, and the targets of links. Misuse cases of calls
between qubes all have a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
THREAT_MODEL = ROOT / "docs" / "threat-model.md"
MAX_LINE = 200
"""Characters; longer lines of a table do not fit a screen and are not read."""

CALLS = range(1, 35)
"""Numbers of the misuse cases of calls between qubes: files, the calls themselves, policy."""
_CASE = re.compile(r"^\| (?:MC-(\d+)| ) \|.*", re.MULTILINE)
_CASE_NAMED = re.compile(r"MC-(\d+)|mc(\d+)")
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


def cases_with_tests(text: str) -> dict[int, list[tuple[str, str]]]:
    """Case → file and name of each test that the table has for it."""
    found: dict[int, list[tuple[str, str]]] = {}
    case = 0
    for row in _CASE.finditer(text):
        case = int(row[1] or case)
        found.setdefault(case, []).extend(_NAMED_TEST.findall(row[0]))
    return found


def cases_of(file: str, function: str) -> set[int]:
    """Which cases a test says that it is for: in its name, its docstring or a comment in it."""
    source = (TESTS / file).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function:
            text = ast.get_source_segment(source, node) or ""
            return {int(long or short) for long, short in _CASE_NAMED.findall(text)}
    return set()


@pytest.mark.parametrize("case", CALLS)
def test_misuse_case_of_calls_has_a_test_that_names_it(case: int) -> None:
    tests = cases_with_tests(THREAT_MODEL.read_text(encoding="utf-8")).get(case, [])
    assert [test for test in tests if case in cases_of(*test)] != []


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


def test_no_two_decisions_have_one_number() -> None:
    numbers = [path.name.partition("-")[0] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert sorted(numbers) == sorted(set(numbers))
