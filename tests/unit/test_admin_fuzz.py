"""The fuzz targets of the Admin API, and of what guests tell it, over their fixed inputs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["fuzz_admin", "fuzz_applications", "fuzz_notification"])
def test_fixed_inputs_keep_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-11: any bytes, in any split."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fuzz"))
    target = importlib.import_module(name)
    for data in sys.modules["harness"].inputs(target.SEEDS):
        target.fuzz_one(data)
