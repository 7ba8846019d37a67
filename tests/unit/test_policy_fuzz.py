"""The fuzz targets of policy over their fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.parametrize("name", ["fuzz_policy", "fuzz_policy_agent"])
def test_target_fixed_inputs_keep_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-25, MC-27, MC-28: any text, any call. MC-39: any question to the user."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module(name)
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
