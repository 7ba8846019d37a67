"""Whether windows can be shown, and what is said where they cannot."""

from __future__ import annotations

import importlib.util
import os

import pytest

from insula.manager import display
from insula.manager.display import NoDisplay


def test_without_pyside_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoDisplay, match=r"insula\[gui\]"):
        display.check({"DISPLAY": ":0"})


def test_without_a_display_it_is_said() -> None:
    with pytest.raises(NoDisplay, match="neither DISPLAY nor WAYLAND_DISPLAY"):
        display.check({})


def test_display_that_is_not_there_is_no_crash_of_ours() -> None:
    with pytest.raises(NoDisplay, match=r"cannot be shown here: .*could not connect to display"):
        display.check({**os.environ, "DISPLAY": ":4711", "QT_QPA_PLATFORM": "xcb"})


def test_screen_that_works_is_fine() -> None:
    display.check({**os.environ, "QT_QPA_PLATFORM": "offscreen"})
