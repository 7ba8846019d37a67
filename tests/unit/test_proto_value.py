from __future__ import annotations

import pytest

from insula_proto.qrexec import ExecCmdline, JustExec, Stderr, Stdout


def test_values_same_fields_other_type_are_unequal() -> None:
    assert Stdout(b"x") == Stdout(b"x")
    assert Stdout(b"x") != Stderr(b"x")
    assert ExecCmdline(0, 1, b"a") != JustExec(0, 1, b"a")
    assert ExecCmdline(0, 1, b"a") != ExecCmdline(0, 1, b"b")
    assert len({Stdout(b"x"), Stdout(b"x"), Stderr(b"x")}) == 2


def test_value_assignment_refused() -> None:
    with pytest.raises(AttributeError):
        Stdout(b"x").data = b"y"


def test_value_repr_names_inherited_fields() -> None:
    assert repr(ExecCmdline(0, 513, b"a:b")) == "ExecCmdline(command=b'a:b', domain=0, port=513)"
