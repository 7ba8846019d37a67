from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from insula.preload import title

SHOWING = """
import sys
from pathlib import Path
from insula.preload import title
title.prepare()
for text in sys.argv[1:]:
    title.show(text)
    sys.stdout.buffer.write(Path("/proc/self/cmdline").read_bytes())
"""


def shown(*texts: str) -> bytes:
    command = [sys.executable, "-c", SHOWING, *texts]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("text", ["x", "insula-session work", "two words and more"])
def test_title_takes_the_place_of_the_command_line(text: str) -> None:
    assert shown(text) == text.encode() + b"\0"


def test_shorter_title_leaves_nothing_of_a_longer_one() -> None:
    assert shown("insula-session work", "x") == b"insula-session work\0x\0"


def test_title_too_long_is_cut_and_not_written_beyond() -> None:
    long = "x" * 500
    found = shown(long, "y")
    assert found.startswith(b"x" * 500)
    assert found.endswith(b"\0y\0")


def test_characters_beyond_ascii_are_replaced() -> None:
    assert shown("ä\u202e") == b"??\0"


def test_process_that_did_not_prepare_keeps_its_command_line() -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    title.show("something else")
    assert Path("/proc/self/cmdline").read_bytes() == before
