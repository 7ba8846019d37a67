"""Exceptions become one line, a hint and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.admin.client import AccessRefused, DaemonUnavailable, MalformedAnswer
from insula.cli.failures import CliError, Failure, describe, did_you_mean, not_found_hint
from insula.daemon import autostart
from insula.daemon.paths import Paths
from insula.model import errors

PATHS = Paths(Path("/data"), Path("/run/i"))
LOG = "the daemon's log: /data/logs/insulad.log"


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (CliError("no", hint="h", exit_code=2), Failure("no", "h", 2)),
        (autostart.DaemonUnavailable("did not start\n\n last line"), Failure("did not start; last line", LOG, 3)),
        (DaemonUnavailable("gone"), Failure("gone", LOG, 3)),
        (AccessRefused("refused"), Failure("refused", LOG, 1)),
        (MalformedAnswer("odd"), Failure("odd", LOG, 1)),
        (errors.QubesVMNotFoundError("No such qube: 'wrok'"), Failure("No such qube: 'wrok'", "did you mean work?")),
        (errors.QubesVMNotRunningError("work is off"), Failure("work is off", "insula start NAME")),
        (errors.QubesNoTemplateError("none"), Failure("none", "insula template build debian-12")),
        (errors.QubesException(""), Failure("QubesException")),
        (errors.ProtocolError("bad call"), Failure("bad call")),
        (FileNotFoundError(2, "No such file", "/x"), Failure("/x: No such file")),
        (ZeroDivisionError("x"), None),
    ],
)
def test_describe_gives_line_hint_and_code(error: Exception, failure: Failure | None) -> None:
    assert describe(error, ["dom0", "work"], PATHS) == failure


def test_describe_knows_every_published_error() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.InsulaError):
            failure = describe(kind("why"))
            assert failure is not None
            assert failure.exit_code == 1


def test_did_you_mean_ignores_case_and_far_words() -> None:
    assert did_you_mean("WROK", ["work", "vault"]) == "did you mean work?"
    assert did_you_mean("zzz", ["work"]) == ""
    assert did_you_mean("work", []) == ""


def test_not_found_hint_prefers_a_guess_then_the_template() -> None:
    assert not_found_hint("No such qube: 'debian-12'", ["dom0"]) == "insula template build debian-12"
    assert not_found_hint("No such qube: 'debian-1'", ["debian-12"]) == "did you mean debian-12?"
    assert not_found_hint("No such qube: 'q'", ["dom0"]) == "insula ls lists the qubes there are"
