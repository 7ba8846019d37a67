"""Every fuzz target over its fixed inputs, so that a broken invariant or a broken target shows in the ordinary run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


FUZZ_TARGETS = [
    "fuzz_fork_server",
    "fuzz_gui",
    "fuzz_mux",
    "fuzz_open_in_vm",
    "fuzz_pixels",
    "fuzz_qfile",
    "fuzz_qrexec",
    "fuzz_qrexec_policy",
    "fuzz_qubesdb",
    "fuzz_split_gpg",
    "fuzz_ssh_agent",
    "fuzz_vmexec",
]


@pytest.mark.parametrize("name", FUZZ_TARGETS)
def test_target_fixed_inputs_keep_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-01, MC-04, MC-07, MC-11, MC-12, MC-16, MC-21, MC-35: decoders given any bytes in any split."""
    monkeypatch.syspath_prepend(str(FUZZ))
    target = importlib.import_module(name)
    harness = sys.modules["harness"]
    assert (target.__doc__ or "").startswith("Invariant:")
    for data in harness.inputs(target.SEEDS):
        target.fuzz_one(data)
