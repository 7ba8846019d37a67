"""``insula mic``: who hears the microphone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as made:
        yield made


def test_it_is_given_shown_and_taken_away(cli: Cli) -> None:
    assert "No qube" in cli.run("mic").out
    assert cli.run("start", "work").code == 0
    assert cli.run("mic", "work").code == 0
    assert cli.run("mic").out == "work\n"
    assert cli.run("mic", "--json").out == '"work"\n'
    assert cli.run("mic", "--detach").code == 0
    assert cli.run("mic", "--json").out == "null\n"


def test_what_cannot_be_is_said_with_a_way_out(cli: Cli) -> None:
    assert "does not run" in cli.run("mic", "work").err
    ran = cli.run("mic", "-d")
    assert (ran.code, "No qube has" in ran.err) == (1, True)
    assert cli.run("mic", "work", "--detach").code == 2
    cli.run("start", "work")
    cli.run("mic", "work")
    again = cli.run("mic", "work")
    assert again.code == 1
    assert "insula mic --detach" in again.err
