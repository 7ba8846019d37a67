"""What windows may, from features of the qube, its template and dom0."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.gui import control
from insula.gui.control import Configure
from insula.gui.features import configure

NAMES = (
    "allow-fullscreen", "override-redirect", "allow-utf8-titles", "secure-copy-sequence", "secure-paste-sequence",
    "max-clipboard-size", "max-clipboard-image", "window-background-color",
)  # fmt: skip


def made(qube: dict[str, str], host: dict[str, str] | None = None) -> tuple[Configure, tuple[str, ...]]:
    return configure("work", 1, qube.get, (host or {}).get)


def test_without_features_all_is_as_careful_as_it_can_be() -> None:
    assert made({}) == (Configure("work", 1), ())
    assert not Configure("work", 1).allows_fullscreen


def test_qubes_own_word_comes_before_the_default_of_dom0() -> None:
    host = {"gui-default-allow-fullscreen": "1", "gui-default-secure-copy-sequence": "Mod4-c"}
    assert made({}, host) == (Configure("work", 1, allows_fullscreen=True, copy="Mod4-c"), ())
    assert made({"gui-allow-fullscreen": ""}, host)[0].allows_fullscreen is False
    assert made({"gui-secure-copy-sequence": "none"}, host)[0].settings().copy is None
    assert made({"gui-default-allow-fullscreen": "1"}, {"gui-allow-fullscreen": "1"})[0] == Configure("work", 1)


def test_every_feature_is_read() -> None:
    given_features = {
        "gui-override-redirect": "disable",
        "gui-allow-utf8-titles": "1",
        "gui-max-clipboard-size": "256000",
        "gui-max-clipboard-image": "0",
        "gui-window-background-color": "0x102030",
        "gui-secure-paste-sequence": "Ctrl-Alt-v",
    }
    expected = Configure(
        "work", 1, False, False, True, 256000, 0x102030, "Ctrl-Shift-c", "Ctrl-Alt-v", image_limit=0
    )  # fmt: skip
    assert made(given_features) == (expected, ())


@given(st.dictionaries(st.sampled_from([f"gui-{name}" for name in NAMES]), st.text(max_size=30)))
def test_any_value_gives_windows_and_a_word_about_what_cannot_be(features: dict[str, str]) -> None:
    configured, problems = made(features)
    control.encode(configured)
    configured.settings()
    assert len(problems) <= len(features)
    assert all(any(problem.startswith(name) for name in features) for problem in problems)


def test_value_that_cannot_be_leaves_the_default_of_dom0_or_ours() -> None:
    features = {"gui-max-clipboard-size": "9999999", "gui-secure-copy-sequence": "c"}
    configured, problems = made(features, {"gui-default-max-clipboard-size": "300"})
    assert (configured.clipboard_limit, configured.copy) == (300, "Ctrl-Shift-c")
    assert [problem.partition(":")[0] for problem in problems] == list(features)
