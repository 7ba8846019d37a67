"""What a package manager prints, as `insula update` tells of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.commands.update import MAX_COMPLAINT, NO_SPACE, Printed, _ended, _failed
from insula.cli.step import Step

APT = (
    b"Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]\n"
    b"E: The repository 'http://deb.debian.org/debian bookworm InRelease' is not signed.\n"
    b"E: Some index files failed to download.\n"
)


class Lines:
    """A display of steps that keeps what they say."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.step = Step(self, "debian-12", "updating", "updated")

    def began(self, step: Step) -> None: ...

    def changed(self, step: Step) -> None:
        self.lines.append(step.doing)

    def ended(self, step: Step, report: str) -> None: ...

    def close(self) -> None: ...


@given(st.lists(st.integers(1, 60), max_size=20))
def test_first_complaint_is_kept_whatever_the_pieces(sizes: list[int]) -> None:
    printed, rest = Printed(Lines().step), APT
    for size in [*sizes, len(APT)]:
        printed.hear(rest[:size])
        rest = rest[size:]
    whole = "E: The repository 'http://deb.debian.org/debian bookworm InRelease' is not signed."
    assert printed.complaint == whole


def test_complaint_about_a_signature_is_told_before_others() -> None:
    printed = Printed(Lines().step)
    warning = "W: GPG error: http://deb.debian.org/debian bookworm InRelease: NO_PUBKEY 0E98404D386FA1D9"
    printed.hear(b"E: Failed to fetch http://deb.debian.org\n" + warning.encode() + b"\nW: GPG error: another\n" + APT)
    assert printed.complaint == warning


@pytest.mark.parametrize("line", [b"E: \x1b[2J\x07boo", b"E: " + b"x" * 10_000, b"E: \xff\xfe"])
def test_complaint_is_short_and_harmless(line: bytes) -> None:
    printed = Printed(Lines().step)
    printed.hear(line + b"\n")
    assert printed.complaint.startswith("E: ")
    assert len(printed.complaint) <= MAX_COMPLAINT
    assert "\x1b" not in printed.complaint
    assert "\x07" not in printed.complaint


def test_last_line_is_shown_while_it_works() -> None:
    shown = Lines()
    Printed(shown.step).hear(b"Reading package lists...\nBuilding")
    assert shown.lines == ["Building"]


def test_full_disk_is_told_whatever_the_package_manager_said() -> None:
    failure = _failed("debian-12", NO_SPACE, "E: Failed to fetch http://…  Connection failed", Path("update.log"))
    assert "no space is left" in str(failure)
    assert "Connection failed" not in str(failure)
    assert "insula volume resize debian-12 root" in failure.hint


def test_daemon_that_ended_is_told_as_that() -> None:
    assert "insulad" in str(_ended("debian-12", None))


UPDATE = Path(__file__).parents[2] / "src" / "insula_agent" / "rpc" / "insula.Update"


@pytest.mark.parametrize(("free_blocks", "code"), [(0, NO_SPACE), (255, NO_SPACE), (256, 21)])
def test_service_looks_whether_there_was_room_when_its_package_manager_failed(
    tmp_path: Path, free_blocks: int, code: int
) -> None:
    """apt says "Connection failed" of a disk that is full."""
    for name, program in (("apt-get", "exit 100"), ("stat", f"echo {free_blocks} 4096")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", UPDATE], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == code
    assert (b"No space left" in done.stderr) is (code == NO_SPACE)
