"""The instrument itself: a picture shows what was drawn, a click arrives where it went."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.desktop import Desktop, desktop

pytestmark = pytest.mark.desktop

PROGRAM = """\
import sys
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QWidget
class Square(QWidget):
    def mousePressEvent(self, event):
        print(event.position().toPoint().toTuple(), flush=True)
        sys.exit(0)
app = QApplication([])
square = Square()
square.setWindowTitle("a square")
square.setPalette(QPalette(QColor("#cc0000")))
square.setFixedSize(200, 100)
square.show()
app.exec()
"""


@pytest.fixture
def screen() -> Iterator[Desktop]:
    with desktop(640, 480) as shown:
        yield shown


def test_window_is_found_seen_and_clicked(screen: Desktop, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=screen.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        window = screen.window("a square")
        assert (window.width, window.height) == (200, 100)
        screen.wait(lambda: screen.picture().pixel(*window.centre) == 0xCC0000, "the square is not red")
        inside = screen.picture().part(window.x, window.y, window.width, window.height)
        assert inside.share(0xCC0000) == 1.0
        assert screen.picture().share(0xCC0000) == pytest.approx(200 * 100 / (640 * 480))
        screen.click(window.x + 30, window.y + 40)
        out, _ = process.communicate(timeout=120)
        assert out == "(30, 40)\n"
        screen.wait(lambda: screen.picture().share(0xCC0000) == 0.0, "the square is still there")
        inside.save(tmp_path / "square.png")
        assert (tmp_path / "square.png").read_bytes().startswith(b"\x89PNG")
    finally:
        process.kill()
        process.communicate()
