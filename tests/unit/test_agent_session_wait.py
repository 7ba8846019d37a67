"""What calls that belong in the user's session wait for; that they do is tried with whole agents elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula_agent import session_wait
from insula_agent.gui import session


def test_there_is_a_session_when_it_has_said_so_and_its_gate_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, environment = tmp_path / "gate", tmp_path / "environment"
    monkeypatch.setattr(session_wait, "GATE", str(gate))
    monkeypatch.setattr(session_wait, "ENVIRONMENT", str(environment))
    assert not session_wait.is_session_up()
    gate.touch()
    assert not session_wait.is_session_up()
    environment.touch()
    assert not session_wait.is_session_up()
    gate.unlink()
    assert session_wait.is_session_up()


def test_it_is_looked_for_where_the_session_shows_itself() -> None:
    assert (session_wait.GATE, session_wait.ENVIRONMENT) == (session.GATE, session.ENVIRONMENT)
