"""The fuzz targets of what processes of the host tell each other over their fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.parametrize("name", ["fuzz_session_control", "fuzz_lending"])
def test_target_fixed_inputs_keep_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-11, MC-12, MC-16: whatever a session says."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module(name)
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
