"""``benchmarks/run_all.py``: rows are replaced by the newly measured ones, everything else stays."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASE = {
    "name": "cold_start", "value": 4.0, "unit": "s", "ratio": 1.1, "baseline_what": "plain QEMU",
    "bar": "≤ 1.15 × baseline", "ok": True, "runs": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_all() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_all", BENCHMARKS / "run_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_new_rows_take_the_place_of_the_scripts_old_ones(run_all: ModuleType) -> None:
    row = "| cold_start | 4 s | 1.10 × plain QEMU | ≤ 1.15 × baseline | met | 5 | 2026-01-02 |"
    assert run_all.rows(CASE, "2026-01-02") == [row]
    page = run_all.merged("", "a machine", {"density": ["| density: x | 1 |", "| density: y | 2 |"]})
    page = run_all.merged(f"{page}\n## Notes\n| not a | row |\n- words\n", "a machine", {"cold_start": [row]})
    assert page.endswith(
        f"\n{row} A |\n| density: x | 1 | A |\n| density: y | 2 | A |\n\n## Notes\n| not a | row |\n- words\n"
    )
    assert page.count("| what |") == 1
    assert run_all.merged(page, "a machine", {"cold_start": [row]}) == page


def test_rows_say_on_which_machine_they_were_measured(run_all: ModuleType) -> None:
    page = run_all.merged("", "old, 2 cores", {"density": ["| density: x | 1 |"], "cold_start": ["| cold_start | 1 |"]})
    page = run_all.merged(page, "new: 4 cores", {"density": ["| density: x | 2 |"]})
    assert page.endswith("\n| cold_start | 1 | A |\n| density: x | 2 | B |\n")
    assert "\n- A: old, 2 cores\n- B: new: 4 cores\n\n" in page
    page = run_all.merged(page, "third", {"cold_start": ["| cold_start | 3 |"]})
    assert page.endswith("\n| cold_start | 3 | C |\n| density: x | 2 | B |\n")
    assert "\n\n- B: new: 4 cores\n- C: third\n\n" in page
    assert "old, 2 cores" not in page


def test_page_as_it_is_loses_nothing(run_all: ModuleType) -> None:
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
    machine = page.partition("\n- A: ")[2].partition("\n")[0]
    assert run_all.merged(page, machine, {}) == page


def test_page_has_rows_of_every_script(run_all: ModuleType) -> None:
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
    missing = [name for name in run_all.scripts() if f"\n| {name}" not in page]
    assert missing == []
