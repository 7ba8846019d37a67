"""The fuzz target of storage over its fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


def test_target_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-63, MC-65: any record, any overlay."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module("fuzz_storage")
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
