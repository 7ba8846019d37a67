"""``scripts/test``: a folder of tests that it does not name would never be run."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_of_tests_is_run() -> None:
    folders = {test.relative_to(ROOT).parts[1] for test in (ROOT / "tests").rglob("test_*.py")}
    words = set((ROOT / "scripts" / "test").read_text().split())
    assert {f"tests/{folder}" for folder in folders} - words == set()
