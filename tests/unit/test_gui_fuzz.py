"""The fuzz targets of windows over their fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


def test_target_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-35, MC-38, MC-41, MC-42: any bytes of a guest, any events between them."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module("fuzz_gui_windows")
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)


def test_screen_of_a_machine_fixed_inputs_keep_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-35, MC-49: any bytes of a machine monitor."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module("fuzz_rfb")
    harness = sys.modules["harness"]
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
