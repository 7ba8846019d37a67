"""Text between qubes: two keys of the user, the real processes, the real board; the guests lie as they like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from insula.gui.control import Configure
from insula.gui.geometry import WINDOW_FRAME, Rect
from insula.testing.desktop import Desktop, desktop
from insula.testing.gui_guest import Host, ScriptedGuest, scripted_guests
from insula_proto import gui

pytestmark = pytest.mark.desktop

BLUE, RED = 0x3465A4, 0xCC0000
PLACES = {"work": Rect(50, 100, 300, 200), "mail": Rect(500, 100, 300, 200)}


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(900, 600) as shown:
        yield shown


class Bench:
    """Two qubes side by side, each with a window."""

    def __init__(self, screen: Desktop, host: Host, guests: list[ScriptedGuest]) -> None:
        self.screen = screen
        self.host = host
        self.guests = dict(zip(PLACES, guests, strict=True))
        for name, guest in self.guests.items():
            guest.window(1, PLACES[name], 0x30C040)
            guest.wait_for(gui.Painted(1))

    def go_to(self, name: str) -> ScriptedGuest:
        window = self.screen.window(rf"\[{name}\]")
        place = WINDOW_FRAME.inside(Rect(window.x, window.y, window.width, window.height))
        self.screen.click(place.x + 20, place.y + 20)
        self.guests[name].wait_for(gui.Focus(1, True))
        return self.guests[name]

    def copy(self, name: str, text: bytes) -> None:
        self.go_to(name)
        self.copy_here(name, text)

    def copy_here(self, name: str, text: bytes) -> None:
        guest = self.guests[name]
        self.screen.key("ctrl+shift+c")
        guest.wait_for(gui.ClipboardRequest(1))
        guest.say(gui.ClipboardData(0, text))

    def wait_said(self, text: str) -> None:
        self.screen.wait(lambda: text in self.host.said(), f"the user was not told {text!r}")


@pytest.fixture
def bench(screen: Desktop) -> Iterator[Bench]:
    with scripted_guests(screen, ("work", BLUE), ("mail", RED)) as (host, guests):
        yield Bench(screen, host, guests)
    screen.wait(lambda: not screen.windows(r"\["), "a window stays")


def test_text_is_pasted_once_where_the_user_said(bench: Bench) -> None:
    """MC-53, MC-54."""
    bench.copy("work", b"secret \xc3\xa4\x00 text")
    bench.wait_said("clipboard: 15 bytes copied from work")
    mail = bench.go_to("mail")
    assert mail.of(gui.ClipboardData) == []
    bench.screen.key("ctrl+shift+v")
    mail.wait_for(gui.ClipboardData(1, b"secret \xc3\xa4\x00 text"))
    bench.wait_said("judged: work to mail")
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")
    assert mail.of(gui.ClipboardData) == []
    assert "secret" not in bench.host.said()


def test_policy_that_forbids_leaves_the_target_without_a_word(screen: Desktop) -> None:
    """MC-55."""
    with scripted_guests(screen, ("work", BLUE), ("mail", RED), policy="deny") as (host, guests):
        bench = Bench(screen, host, guests)
        bench.copy("work", b"secret")
        bench.wait_said("6 bytes copied")
        mail = bench.go_to("mail")
        bench.screen.key("ctrl+shift+v")
        bench.wait_said("policy does not let text go from work to mail")
        bench.screen.key("a")
        mail.wait(lambda: any(m.code == 38 for m in mail.of(gui.Key)))
        assert mail.of(gui.ClipboardData) == []


def test_text_nobody_asked_for_never_gets_anywhere(bench: Bench) -> None:
    """MC-51."""
    bench.guests["work"].say(*[gui.ClipboardData(0, b"unasked")] * 5)
    mail = bench.go_to("mail")
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")
    assert mail.of(gui.ClipboardData) == []
    assert "copied from" not in bench.host.said()


def test_answer_after_the_user_went_on_is_dropped(bench: Bench) -> None:
    """MC-51."""
    work = bench.go_to("work")
    bench.screen.key("ctrl+shift+c")
    work.wait_for(gui.ClipboardRequest(1))
    mail = bench.go_to("mail")
    bench.wait_said("work had not answered yet; nothing was copied")
    work.say(gui.ClipboardData(0, b"late"))
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")
    assert mail.of(gui.ClipboardData) == []


def test_text_that_is_too_long_is_refused_as_a_whole_and_the_one_before_is_gone(bench: Bench) -> None:
    """MC-52."""
    bench.copy("work", b"older")
    bench.wait_said("5 bytes copied from work")
    bench.copy_here("work", b"x" * 64001)
    bench.wait_said("nothing was copied from work: the text is longer than 64000 bytes")
    mail = bench.go_to("mail")
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")
    assert mail.of(gui.ClipboardData) == []


def test_longest_text_arrives_whole(bench: Bench) -> None:
    """MC-52."""
    text = "öä\n\x7f€".encode() * 7111 + b"x"
    bench.copy("work", text)
    bench.wait_said("64000 bytes copied from work")
    mail = bench.go_to("mail")
    bench.screen.key("ctrl+shift+v")
    mail.wait_for(gui.ClipboardData(1, text))


def test_qube_that_ends_takes_what_was_copied_from_it(bench: Bench) -> None:
    """MC-20."""
    bench.copy("work", b"text")
    bench.wait_said("4 bytes copied from work")
    bench.guests["work"].say_raw(b"\xff" * 12)
    bench.wait_said("work ended")
    bench.go_to("mail")
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")


def test_what_is_no_text_is_refused_as_a_whole(bench: Bench) -> None:
    """MC-52."""
    bench.copy("work", b"no text \xff\xfe")
    bench.wait_said("nothing was copied from work: what it gave is no text")
    mail = bench.go_to("mail")
    bench.screen.key("ctrl+shift+v")
    bench.wait_said("there is nothing to paste")
    assert mail.of(gui.ClipboardData) == []


def test_keys_are_those_the_user_chose_and_a_qube_takes_no_more_than_its_limit(screen: Desktop) -> None:
    """MC-52."""
    work = Configure("work", BLUE, copy="Ctrl-Alt-k", paste="none")
    mail = Configure("mail", RED, clipboard_limit=256, paste="Mod4-p")
    with scripted_guests(screen, work, mail) as (host, guests):
        bench = Bench(screen, host, guests)
        guest = bench.go_to("work")
        screen.key("ctrl+shift+c", "ctrl+shift+v", "ctrl+alt+k")
        guest.wait(lambda: gui.ClipboardRequest(1) in guest.heard)
        # The usual keys are the guest's now.
        assert {54, 55} <= {m.code for m in guest.of(gui.Key)}
        guest.say(gui.ClipboardData(0, b"x" * 257))
        bench.wait_said("257 bytes copied from work")
        other = bench.go_to("mail")
        screen.key("super+p")
        bench.wait_said("the text has 257 bytes, mail takes 256; nothing was pasted")
        assert other.of(gui.ClipboardData) == []
