"""The fuzz target of sound over its fixed inputs, so that a broken invariant shows in the ordinary run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


def test_target_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module("fuzz_sound")
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in sys.modules["harness"].inputs(target.SEEDS):
        target.fuzz_one(data)
