"""From an exception to what a person reads: one line, a hint where one helps, an exit code.

Pure. What the daemon refuses is told in its own words; this module adds what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from insula.admin.client import AccessRefused, DaemonUnavailable, MalformedAnswer
from insula.daemon import autostart
from insula.daemon.paths import Paths
from insula.model import errors

REFUSED = 1
USAGE = 2
NO_DAEMON = 3
INTERRUPTED = 130
TERMINATED = 143
READER_GONE = 141
"""As of a program that SIGPIPE ended."""

DEFAULT_TEMPLATE = "debian-12"
MAX_SUGGESTIONS = 3
_QUOTED = re.compile(r"'([^']{1,64})'|\"([^\"]{1,64})\"")


@dataclass(frozen=True)
class Failure:
    message: str
    hint: str = ""
    exit_code: int = REFUSED


class CliError(Exception):
    """Refused by a command itself, or an error of the daemon with a better hint."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = REFUSED) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


_HINTS: tuple[tuple[type[errors.InsulaError], str], ...] = (
    (errors.QubesVMNotRunningError, "insula start NAME"),
    (errors.QubesVMNotStartedError, "insula ls shows which qubes run"),
    (errors.QubesVMNotPausedError, "insula ls shows which qubes are paused"),
    (errors.QubesVMNotHaltedError, "insula stop NAME first"),
    (errors.QubesVMAlreadyExistsError, "insula ls lists the qubes there are"),
    (errors.QubesVMShutdownTimeoutError, "insula stop --timeout SECONDS waits longer, insula kill NAME does not wait"),
    (errors.QubesNoTemplateError, f"insula template build {DEFAULT_TEMPLATE}"),
    (errors.QubesNoSuchPropertyError, "insula prefs NAME lists the properties of a qube"),
    (errors.QubesLabelNotFoundError, "insula label ls"),
    (errors.QubesPoolNotFoundError, "insula pool ls"),
    (errors.QubesVolumeNotFoundError, "insula volume ls NAME"),
    (errors.QubesVolumeRevisionNotFoundError, "insula volume revisions NAME VOLUME"),
    (errors.QubesFeatureNotFoundError, "insula features NAME lists them"),
    (errors.QubesTagNotFoundError, "insula tags NAME lists them"),
    (errors.QubesNoDesktopError, "run it from a terminal of the desktop; over ssh: DISPLAY=:0 insula run --gui …"),
    (errors.QubesMemoryError, "stop a qube, or give this one less: insula prefs NAME memory MIB"),
)


def describe(error: BaseException, names: Sequence[str] = (), paths: Paths | None = None) -> Failure | None:
    """What to tell about ``error``; None if nobody foresaw it (a fault in the program).

    ``names``: the qubes there are, to guess which one was meant.
    """
    match error:
        case CliError():
            return Failure(str(error), error.hint, error.exit_code)
        case autostart.DaemonUnavailable():
            return Failure(_one_line(str(error)), _log_hint(paths), NO_DAEMON)
        case DaemonUnavailable():
            return Failure(str(error), _log_hint(paths), NO_DAEMON)
        case AccessRefused() | MalformedAnswer():
            return Failure(str(error), _log_hint(paths))
        case errors.QubesVMNotFoundError():
            return Failure(_message(error), not_found_hint(str(error), names))
        case errors.InsulaError():
            return Failure(_message(error), _hint(error))
        case TimeoutError():
            return Failure(str(error) or "it took too long")
        case OSError():
            return Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return None


def not_found_hint(message: str, names: Sequence[str]) -> str:
    """``did you mean …?`` for the names quoted in a message, else where to look."""
    quoted = [first or second for first, second in _QUOTED.findall(message)]
    for name in quoted:
        if name not in names and (guess := did_you_mean(name, names)):
            return guess
    if DEFAULT_TEMPLATE in quoted:
        return f"insula template build {DEFAULT_TEMPLATE}"
    return "insula ls lists the qubes there are"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A question with the nearest known words, or an empty string."""
    lowered = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), list(lowered), n=MAX_SUGGESTIONS)
    return f"did you mean {' or '.join(lowered[match] for match in matches)}?" if matches else ""


def _hint(error: errors.InsulaError) -> str:
    for kind, hint in _HINTS:
        if isinstance(error, kind):
            return hint
    return ""


def _message(error: errors.InsulaError) -> str:
    return _one_line(str(error)) or error.wire_name


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _log_hint(paths: Paths | None) -> str:
    return f"the daemon's log: {paths.logs / 'insulad.log'}" if paths else ""
