"""One line of a policy file → a rule, a directive, or nothing (qrexec §6, "Lines", "Directives", "Old syntax").

Knows nothing of files: what a directive brings in is the loader's business. White space is Unicode's, as published;
there are no trailing comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from insula.policy.errors import Location
from insula.policy.rules import ANY, Action, Rule
from insula.policy.tokens import Kind, Place, Token, TokenError, parse_token

_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_ARGUMENT = re.compile(r"\+[A-Za-z0-9+._-]*")
_YES_NO = {"yes": True, "no": False}
_OLD_INCLUDE = "$include:"
_MAX_SHOWN = 64
"""Characters of a wrong word repeated in an error."""

_PARAMETERS: Mapping[Action, frozenset[str]] = {
    Action.ALLOW: frozenset({"target", "user", "notify", "autostart"}),
    Action.ASK: frozenset({"target", "user", "notify", "autostart", "default_target"}),
    Action.DENY: frozenset({"notify"}),
}


class LineError(ValueError):
    """The line is neither rule nor directive. ``str()`` is the reason."""


@dataclass(frozen=True, slots=True)
class Include:
    """``!include FILE``"""

    path: str


@dataclass(frozen=True, slots=True)
class IncludeDir:
    """``!include-dir DIR``"""

    path: str


@dataclass(frozen=True, slots=True)
class IncludeService:
    """``!include-service SERVICE ARG FILE``: a file in the old syntax, for that service."""

    service: str
    argument: str
    path: str


@dataclass(frozen=True, slots=True)
class Compat:
    """``!compat-4.0``: all files of the old folder."""


Line = Rule | Include | IncludeDir | IncludeService | Compat


def parse_line(untrusted_line: str, location: Location) -> Line | None:
    """None: an empty line or a comment. :raise LineError:"""
    stripped = untrusted_line.strip()
    if not stripped or stripped.startswith("#"):
        return None
    words = stripped.split()
    if stripped.startswith("!"):
        return _directive(words)
    if len(words) < 5:
        raise LineError("a rule is SERVICE ARGUMENT SOURCE TARGET ACTION [PARAMETER…], a word is missing")
    service, argument, *rest = words
    check_call(service, argument)
    return _rule(location, service, argument, rest)


def parse_old_line(untrusted_line: str, service: str, argument: str, location: Location) -> Rule | Include | None:
    """A line of a file for one service: ``SOURCE TARGET ACTION[,PARAMETER…]``. :raise LineError:"""
    stripped = untrusted_line.strip()
    if not stripped or stripped.startswith("#"):
        return None
    if stripped.startswith(_OLD_INCLUDE):
        stripped = f"!include {stripped.removeprefix(_OLD_INCLUDE)}"
    words = stripped.replace("$", "@").replace(",", " ").split()
    if stripped.startswith("!"):
        directive = _directive(words)
        if not isinstance(directive, Include):
            raise LineError(f"{words[0][:_MAX_SHOWN]!a} cannot stand in a file in the old syntax")
        return directive
    if len(words) < 3:
        raise LineError("a line in the old syntax is SOURCE TARGET ACTION[,PARAMETER…], a word is missing")
    return _rule(location, service, argument, words)


def check_call(untrusted_service: str, untrusted_argument: str) -> None:
    """The first two words of a rule. :raise LineError:"""
    if untrusted_service != ANY and not _SERVICE.fullmatch(untrusted_service):
        raise LineError(f"{_shown(untrusted_service)} is no name of a service (A-Z a-z 0-9 - . _, or *)")
    if untrusted_argument != ANY and not _ARGUMENT.fullmatch(untrusted_argument):
        raise LineError(f"{_shown(untrusted_argument)} is no argument (+ and A-Z a-z 0-9 + - . _, or *)")
    if untrusted_service == ANY and untrusted_argument != ANY:
        raise LineError("a rule for every service is a rule for every argument: * *")


def is_service_file(name: str) -> bool:
    """Whether a file of the old folder can be meant for a service: ``SERVICE`` or ``SERVICE+ARGUMENT``."""
    service, plus, argument = name.partition("+")
    return bool(_SERVICE.fullmatch(service)) and (not plus or bool(_ARGUMENT.fullmatch(plus + argument)))


def _directive(words: Sequence[str]) -> Include | IncludeDir | IncludeService | Compat:
    name, *values = words
    expected = {"!include": 1, "!include-dir": 1, "!include-service": 3, "!compat-4.0": 0}.get(name)
    if expected is None:
        raise LineError(f"{_shown(name)} is no directive")
    if len(values) != expected:
        raise LineError(f"{name} takes {expected} words, here are {len(values)}; a comment needs a line of its own")
    if name == "!include":
        return Include(values[0])
    if name == "!include-dir":
        return IncludeDir(values[0])
    if name == "!include-service":
        check_call(values[0], values[1])
        return IncludeService(values[0], values[1], values[2])
    return Compat()


def _rule(location: Location, service: str, argument: str, words: Sequence[str]) -> Rule:
    """``words``: source, target, action, parameters."""
    source_text, target_text, action_text, *parameter_words = words
    try:
        source = parse_token(source_text, Place.SOURCE)
        target = parse_token(target_text, Place.TARGET)
    except TokenError as error:
        raise LineError(str(error)) from error
    try:
        action = Action(action_text)
    except ValueError:
        raise LineError(f"{_shown(action_text)} is no action (allow, ask, deny)") from None
    parameters = _parameters(action, parameter_words)
    redirect = _redirect(parameters, "target")
    if action is Action.ALLOW and target.kind is Kind.DEFAULT and redirect is None:
        raise LineError("allow with @default as the target needs target=: nobody said where the call goes")
    return Rule(
        location,
        service,
        argument,
        source,
        target,
        action,
        redirect,
        _redirect(parameters, "default_target"),
        parameters.get("user") or None,
        _yes_no(parameters, "autostart", default=True),
        _yes_no(parameters, "notify", default=action.default_notify),
    )


def _parameters(action: Action, words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise LineError(f"{_shown(word)} is no parameter (KEY=VALUE); a comment needs a line of its own")
        if key not in _PARAMETERS[action]:
            raise LineError(f"{action} has no parameter {_shown(key)}")
        if key in found:
            raise LineError(f"{key}= is given twice")
        found[key] = value
    return found


def _redirect(parameters: Mapping[str, str], key: str) -> Token | None:
    if key not in parameters:
        return None
    try:
        return parse_token(parameters[key], Place.REDIRECT)
    except TokenError as error:
        raise LineError(f"{key}=: {error}") from error


def _yes_no(parameters: Mapping[str, str], key: str, *, default: bool) -> bool:
    if key not in parameters:
        return default
    try:
        return _YES_NO[parameters[key]]
    except KeyError:
        raise LineError(f"{key}= is yes or no, not {_shown(parameters[key])}") from None


def _shown(word: str) -> str:
    return f"{word[:_MAX_SHOWN]!a}"
