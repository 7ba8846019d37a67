"""Whether windows can be shown here. Qt ends the whole process where it cannot, so it is tried in another one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping

TRIAL_TIMEOUT_S = 30.0
MAX_REASON = 300
"""Characters of what Qt says."""
_TRIAL = "from PySide6.QtWidgets import QApplication; from PySide6 import QtDBus; QApplication([])"


class NoDisplay(Exception):
    """The message says why, and how to change it."""


def check(environ: Mapping[str, str] | None = None) -> None:
    """Return if windows can be shown. :raise NoDisplay:"""
    env = os.environ if environ is None else environ
    if importlib.util.find_spec("PySide6") is None:
        raise NoDisplay("windows need PySide6, which is not installed: pip install 'insula[gui]', or make setup")
    if not any(env.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")):
        raise NoDisplay("there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set")
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env=env,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TRIAL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise NoDisplay(f"the display did not answer within {TRIAL_TIMEOUT_S:g} s") from None
    if trial.returncode != 0:
        raise NoDisplay(f"windows cannot be shown here: {_reason(trial.stderr) or f'status {trial.returncode}'}")


def _reason(stderr: bytes) -> str:
    """The line that matters: Qt begins with it, Python ends with it."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0])[:MAX_REASON]
