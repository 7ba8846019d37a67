"""Pictures of the screen: what is in one and what is painted over, and their names."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui.geometry import Rect
from insula.manager import screenshot
from insula.manager.screenshot import NothingToShow, ShotWindow

SCREEN = Rect(0, 0, 1000, 700)
WORK = ShotWindow(Rect(100, 100, 300, 200), "work", True)
MENU = ShotWindow(Rect(150, 150, 50, 90), "work", False)
OTHER = ShotWindow(Rect(300, 200, 300, 200), "untrusted", True)
HOSTS = ShotWindow(Rect(0, 0, 1000, 30), "", False)
PROMPT = ShotWindow(Rect(350, 250, 200, 200), "", True, has_mark=True)
RECTS = st.builds(Rect, st.integers(-50, 900), st.integers(-50, 600), st.integers(1, 500), st.integers(1, 400))
WINDOWS = st.lists(
    st.builds(ShotWindow, RECTS, st.sampled_from(["", "work", "untrusted"]), st.booleans(), st.booleans()), max_size=8
)
NOON = datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC)


def test_window_of_a_qube_has_its_menus_in_it_and_nothing_of_others_above() -> None:
    shot = screenshot.of_qube("work", SCREEN, [HOSTS, OTHER, MENU, WORK])
    assert shot.area == WORK.place
    assert shot.blank == (HOSTS.place, OTHER.place)


def test_topmost_managed_window_of_the_qube_is_taken() -> None:
    lower = ShotWindow(Rect(0, 0, 50, 50), "work", True)
    assert screenshot.of_qube("work", SCREEN, [MENU, WORK, lower]).area == WORK.place
    with pytest.raises(NothingToShow, match="no window of vault"):
        screenshot.of_qube("vault", SCREEN, [MENU, WORK])
    with pytest.raises(NothingToShow):
        screenshot.of_qube("work", SCREEN, [MENU])


@given(WINDOWS)
def test_mc38_each_pixel_of_a_windows_picture_is_of_its_qube_or_blank(windows: list[ShotWindow]) -> None:
    for window in windows:
        if window.place.intersection(SCREEN).is_empty:
            continue
        shot = screenshot.of_window(window, SCREEN, windows)
        for x, y in ((shot.area.x, shot.area.y), (shot.area.right - 1, shot.area.bottom - 1)):
            pixel = Rect(x, y, 1, 1)
            topmost = next(each for each in windows if each.place.contains(pixel))
            is_blank = any(rect.contains(pixel) for rect in shot.blank)
            is_own = topmost == window or (topmost.qube == window.qube != "" and not topmost.has_mark)
            assert is_blank or is_own


@given(WINDOWS)
def test_mc40_no_pixel_of_the_hosts_mark_is_in_any_picture(windows: list[ShotWindow]) -> None:
    shot = screenshot.of_screen(SCREEN, windows)
    for window in windows:
        pixel = Rect(window.place.x, window.place.y, 1, 1)
        topmost = next(each for each in windows if each.place.contains(pixel))
        if topmost.has_mark:
            assert any(rect.contains(pixel) for rect in shot.blank)


def test_region_is_what_lies_between_two_corners_on_the_screen() -> None:
    region = screenshot.region((500, 400), (100, 50))
    assert region == Rect(100, 50, 401, 351)
    assert screenshot.of_region(Rect(-10, 650, 100, 100), SCREEN, [PROMPT]).area == Rect(0, 650, 90, 50)
    for nothing in (Rect(5, 5, 2, 2), Rect(2000, 0, 50, 50)):
        with pytest.raises(NothingToShow):
            screenshot.of_region(nothing, SCREEN, [])


def test_window_under_the_pointer_is_the_topmost_and_never_a_menu_or_panel() -> None:
    windows = [HOSTS, MENU, OTHER, WORK]
    assert screenshot.window_at(350, 250, windows) == OTHER
    assert screenshot.window_at(110, 110, windows) == WORK
    assert screenshot.window_at(160, 160, windows) is None
    assert screenshot.window_at(5, 5, windows) is None
    assert screenshot.window_at(900, 600, windows) is None


def test_name_says_when_and_is_never_that_of_another_picture(tmp_path: Path) -> None:
    first = screenshot.free_path(tmp_path, NOON)
    assert first == tmp_path / "Screenshot 2026-01-31 12-00-05.png"
    first.touch()
    second = screenshot.free_path(tmp_path, NOON)
    assert second.name == "Screenshot 2026-01-31 12-00-05 2.png"
    for _ in range(screenshot.MAX_OF_A_SECOND - 1):
        screenshot.free_path(tmp_path, NOON).touch()
    with pytest.raises(FileExistsError):
        screenshot.free_path(tmp_path, NOON)
