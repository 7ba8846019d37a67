"""The fuzz target of the Admin API over its fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def test_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-11: any bytes, in any split."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fuzz"))
    target = importlib.import_module("fuzz_admin")
    for data in sys.modules["harness"].inputs(target.SEEDS):
        target.fuzz_one(data)
