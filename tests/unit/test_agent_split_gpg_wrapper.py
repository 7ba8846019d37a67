"""What gpg's full set of options becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.split_gpg.options import OptionRefused
from insula_agent.split_gpg.wrapper import LOG_PLACE, STDOUT_PLACE, translate


@pytest.mark.parametrize(
    ("arguments", "expected", "output"),
    [
        (["--batch", "--yes", "--no-tty", "-s"], ["--batch", "-s"], ""),
        (["--command-fd", "5", "--pinentry-mode=loopback", "-d"], ["-d"], ""),
        (["-o", "f", "-b"], ["-b"], "f"),
        (["-bof", "m"], ["-b", "m"], "f"),
        (["-abo", "f"], ["-ab"], "f"),
        (["-uo", "-b"], ["-uo", "-b"], ""),
        (["-u", "o", "-b"], ["-u", "o", "-b"], ""),
        (["--output=-", "-e"], ["-e"], "-"),
        (["--status-fd", "1", "-d"], ["--status-fd", STDOUT_PLACE, "-d"], ""),
        (["--status-fd=2", "-d"], ["--status-fd", "2", "-d"], ""),
        (["--log-file", "l", "-d"], ["--logger-fd", LOG_PLACE, "-d"], ""),
        (["--detach-sig", "--sign-with", "me"], ["--detach-sign", "--local-user", "me"], ""),
        (["--charset", "UTF-8", "--auto-key-locate=local,wkd", "-d"], ["-d"], ""),
        (["-d", "--", "--yes"], ["-d", "--", "--yes"], ""),
        (["-k", "me", "--yes"], ["-k", "me", "--yes"], ""),
        (["--unknown", "x"], ["--unknown", "x"], ""),
    ],
)
def test_translation_for_the_vault(arguments: list[str], expected: list[str], output: str) -> None:
    result = translate(arguments)
    assert (result.kind, result.arguments, result.output) == ("remote", expected, output)


@pytest.mark.parametrize(
    "arguments", [["--gen-rand", "1", "9"], ["--armor", "--dearmor"], ["--no-default-keyring", "-k"]]
)
def test_what_needs_no_key_stays_here_unchanged(arguments: list[str]) -> None:
    result = translate(arguments)
    assert (result.kind, result.arguments) == ("local", arguments)


def test_import_offers_its_files() -> None:
    result = translate(["--batch", "--import", "--quiet", "a", "b"])
    assert (result.kind, result.arguments) == ("import", ["a", "b"])


@pytest.mark.parametrize(
    "arguments", [["--output"], ["-o"], ["-o", "a", "-ob"], ["--charset", "latin1"], ["--auto-key-locate", "x"], ["-u"]]
)
def test_options_that_cannot_be_had_refused(arguments: list[str]) -> None:
    with pytest.raises(OptionRefused):
        translate(arguments)


@given(st.lists(st.text(max_size=8), max_size=5))
def test_translate_any_words_is_a_translation_or_the_one_error(words: list[str]) -> None:
    try:
        result = translate(words)
    except OptionRefused:
        return
    assert result.kind in ("local", "import", "remote")
