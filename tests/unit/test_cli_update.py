"""What a package manager prints, as `insula update` tells of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.commands.update import MAX_COMPLAINT, Printed
from insula.cli.step import Step

APT = (
    b"Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]\n"
    b"W: GPG error: http://deb.debian.org/debian bookworm InRelease: NO_PUBKEY 0E98404D386FA1D9\n"
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
