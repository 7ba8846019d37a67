"""``qvm-run-vm``: what is called, and what the service's shell is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula_agent.run_vm import first_line, parse


@pytest.mark.parametrize(
    ("arguments", "target", "service", "text"),
    [
        (["work", "ls", "-l"], "work", "qubes.VMShell", "ls -l"),
        (["--dispvm", "ls"], "@dispvm", "qubes.VMShell+WaitForSession", "ls"),
        (["--no-gui", "--dispvm", "ls"], "@dispvm", "qubes.VMShell", "ls"),
        (["$dispvm:web", "ls"], "@dispvm:web", "qubes.VMShell+WaitForSession", "ls"),
        (["--", "work", "--dispvm"], "work", "qubes.VMShell", "--dispvm"),
    ],
)
def test_parse(arguments: list[str], target: str, service: str, text: str) -> None:
    request = parse(arguments)
    assert request is not None
    assert (request.target, request.service, request.text) == (target, service, text)


@pytest.mark.parametrize("arguments", [[], ["work"], ["--dispvm"], ["--what", "work", "ls"], ["", "ls"], ["--help"]])
def test_parse_not_understood(arguments: list[str]) -> None:
    assert parse(arguments) is None


@settings(max_examples=40)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20))
def test_first_line_any_text_is_one_word_to_the_shell(text: str) -> None:
    """MC-17: read as the service's bash reads it, which never reads further than the command it is about to run."""
    quoted = "'" + text.replace("'", "'\\''") + "'"
    line = first_line(f"printf %s {quoted}; cat")
    done = subprocess.run(["bash"], input=line + b"rest", capture_output=True, check=True, timeout=120)
    assert done.stdout == text.encode() + b"rest"


def test_command_becomes_the_client(tmp_path: Path) -> None:
    tool = tmp_path / "qrexec-client-vm"
    tool.write_text('#!/bin/sh\nprintf "%s|" "$@"; cat\n')
    tool.chmod(0o755)
    agent = Path(__file__).parents[2] / "src" / "insula_agent"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "INSULA_LIBRARY": str(agent.parent)}
    done = subprocess.run(
        [agent / "bin" / "qvm-run-vm", "work", "echo", "it's"], env=environment, input=b"stdin",
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    line = "exec \"${BASH:-/bin/sh}\" -c 'echo it'\\''s' || exit 127\n"
    assert done.stdout.decode() == f"--prefix-data={line}|--|work|qubes.VMShell|stdin"
