from __future__ import annotations

import pytest

from insula_agent.programs import ProgramFailed, run


def test_failing_program_is_an_error_unless_its_status_is_accepted() -> None:
    with pytest.raises(ProgramFailed, match="exit status 3"):
        run(["sh", "-c", "exit 3"])
    assert run(["sh", "-c", "exit 3"], accept=3) == 3


def test_killed_program_is_an_error() -> None:
    with pytest.raises(ProgramFailed):
        run(["sh", "-c", "kill -9 $$"], accept=3)


def test_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        run(["no-such-program"])
