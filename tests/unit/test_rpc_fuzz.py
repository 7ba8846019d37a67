"""The fuzz target of the control messages over its fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


def test_target_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-11, MC-12, MC-16: whatever a session says."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module("fuzz_session_control")
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
