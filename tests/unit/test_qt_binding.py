"""The Qt binding: the pinned version is one that keeps count, and programs without windows never load it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PySide6.QtCore import QRect
from PySide6.QtGui import QColor, QImage, QPainter

CALLS = 2000


def test_painting_keeps_the_references_of_none() -> None:
    """PySide6 6.12.0 loses one with each call, and Python 3.11 ends when the last is gone."""
    image = QImage(16, 16, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    area, colour = QRect(0, 0, 8, 8), QColor("red")

    def paint() -> None:
        painter.setClipRect(area)
        painter.fillRect(area, colour)

    paint()  # the first call makes types and enumerations
    before = sys.getrefcount(None)
    for _ in range(CALLS):
        paint()
    after = sys.getrefcount(None)
    painter.end()
    assert abs(after - before) < CALLS // 10


@pytest.mark.parametrize("module", ["insula", "insula.cli.main", "insula.daemon.insulad"])
def test_program_without_windows_does_not_load_qt(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.startswith('PySide6') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
