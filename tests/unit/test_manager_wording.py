"""What a call means, in words."""

from __future__ import annotations

import pytest

from insula.manager import wording
from insula.policy.agent import Question
from insula_proto import vmexec


def test_known_service_says_what_it_does_unknown_one_that_it_is_a_service() -> None:
    assert wording.purpose_of("qubes.Filecopy").text == "copy files to another qube"
    assert wording.purpose_of("my.Service").text == "use a service of another qube"


@pytest.mark.parametrize("service", ["qubes.VMShell", "qubes.VMExec", "admin.vm.Remove", "policy.Replace"])
def test_service_that_gives_control_away_says_so(service: str) -> None:
    assert wording.purpose_of(service).risk


def test_command_is_shown_as_its_words_in_printable_ascii() -> None:
    def command(*words: str) -> str | None:
        argument = vmexec.encode([word.encode() for word in words]).decode()
        return wording.command_of(Question("a", "qubes.VMExec", "+" + argument, ("b",)))

    assert command("rm", "-r", "/home/user") == "'rm' '-r' '/home/user'"
    assert command("l\u0455", "\x1b[2J", "\u202e") == r"'l\u0455' '\x1b[2J' '\u202e'"
    assert wording.command_of(Question("a", "qubes.VMExec", "+-zz", ("b",))) is None
    assert wording.command_of(Question("a", "qubes.Filecopy", "+rm", ("b",))) is None


def test_long_argument_shows_its_begin_and_its_end() -> None:
    shown = wording.shown_argument("+" + "a" * 30_000 + "THE.END")
    assert shown.endswith("THE.END")
    assert "more characters" in shown
    assert len(shown) < wording.MAX_SHOWN + 40
    assert wording.shown_argument("+short") == "short"


def test_targets_are_named_for_people() -> None:
    assert wording.target_title("@dispvm:web") == "a new disposable of web"
    assert wording.target_title("work") == "work"
    assert wording.target_note("dom0")
    assert not wording.target_note("work")


def test_label_is_the_end_of_the_icon() -> None:
    assert wording.label_of("appvm-red") == "red"
    assert wording.label_of("") is None
