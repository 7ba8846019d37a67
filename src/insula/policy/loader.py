"""Files → :class:`Policy`: their order, includes, limits (qrexec §6, "Files", "Directives").

Never raises for what is in the files: what is wrong becomes a problem with file and line, the rest is still read so
that a person sees all problems at once, and the policy with a problem denies everything.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from insula.policy.errors import Location, Problem
from insula.policy.folders import Folder, FolderError
from insula.policy.rules import ANY, Action, Rule
from insula.policy.ruleset import Policy
from insula.policy.syntax import (
    Compat,
    Include,
    IncludeDir,
    IncludeService,
    LineError,
    is_service_file,
    parse_line,
    parse_old_line,
)
from insula.policy.tokens import Place, parse_token

MAX_RULES = 20_000
MAX_FILES = 2_000
"""Files read for one policy; one included twice counts twice, so includes of includes cannot multiply without end."""
MAX_DEPTH = 32
"""Includes within includes."""
MAX_PROBLEMS = 50
"""Collected before reading stops; nobody reads more at once."""
# These bounds are ours: a large published policy has some hundred rules in a dozen files.

_SUFFIX = ".policy"
_FILE_NAME = re.compile(r"[0-9a-z_.-]+")
_NOT_OLD = (".rpmsave", ".rpmnew", ".swp")


@dataclass(frozen=True)
class Sources:
    """Where a policy is read from."""

    folders: Sequence[Folder]
    """The first one that has a file of some name is the one it is read from (run time before configured)."""
    compat: Folder | None = None
    """The old folder, for ``!compat-4.0``. None: there is none, and the directive is a problem."""


def load(sources: Sources) -> Policy:
    """Read everything. The result has problems if anything at all is wrong."""
    return _Reader(sources).run()


class _Stop(Exception):
    """A bound was reached; the problem is recorded."""


class _Reader:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._rules: list[Rule] = []
        self._problems: list[Problem] = []
        self._files_read = 0
        self._open: list[tuple[str, str]] = []
        """Folder and label of the files being read, outermost first."""

    def run(self) -> Policy:
        order: list[tuple[str, Folder]] = []
        try:
            order = self._top_files()
            for name, folder in order:
                self._read_file(folder, name, Location(folder.name, name, None))
        except _Stop:
            pass  # the reason is the last problem
        return Policy(self._rules, self._problems, [name for name, _ in order])

    def _top_files(self) -> list[tuple[str, Folder]]:
        found: dict[str, Folder] = {}
        for folder in self._sources.folders:
            for name in self._policy_names(folder, "", Location(folder.name, ".", None)):
                found.setdefault(name, folder)
        return sorted(found.items())

    def _policy_names(self, folder: Folder, path: str, location: Location) -> list[str]:
        """Names of the policy files of a folder, sorted by code points."""
        try:
            names = sorted(folder.names(path))
        except FolderError as error:
            self._problem(location, f"folder {path or folder.name!a}: {error}")
            return []
        found = [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]
        for name in found:
            if not _FILE_NAME.fullmatch(name):
                self._problem(
                    Location(folder.name, folder.label(f"{path}/{name}" if path else name), None),
                    f"file name {name!a} has a character other than 0-9 a-z _ . -",
                    is_file_name=True,
                )
        return found

    def _read_file(self, folder: Folder, path: str, origin: Location) -> None:
        for number, line in self._lines(folder, path, origin):
            location = Location(folder.name, folder.label(path), number)
            try:
                parsed = parse_line(line, location)
            except LineError as error:
                self._wrong_line(location, error)
                continue
            match parsed:
                case Rule():
                    self._rule(parsed)
                case Include():
                    self._read_file(folder, parsed.path, location)
                case IncludeDir():
                    for name in self._policy_names(folder, parsed.path, location):
                        self._read_file(folder, f"{parsed.path}/{name}", location)
                case IncludeService():
                    self._read_old_file(folder, parsed.path, (parsed.service, parsed.argument), location)
                case Compat():
                    self._read_compat(location)

    def _read_old_file(self, folder: Folder, path: str, call: tuple[str, str], origin: Location) -> None:
        for number, line in self._lines(folder, path, origin):
            location = Location(folder.name, folder.label(path), number)
            try:
                parsed = parse_old_line(line, *call, location)
            except LineError as error:
                self._wrong_line(location, error)
                continue
            if isinstance(parsed, Include):
                self._read_old_file(folder, parsed.path, call, location)
            elif parsed is not None:
                self._rule(parsed)

    def _read_compat(self, origin: Location) -> None:
        folder = self._sources.compat
        if folder is None:
            self._problem(origin, "there is no folder of the old format here")
            return
        try:
            names = folder.names()
        except FolderError as error:
            self._problem(origin, f"folder of the old format: {error}")
            return
        for name in sorted(filter(_is_old_file, names), key=_old_order):
            service, plus, argument = name.partition("+")
            call = (service, plus + argument if plus else ANY)
            self._read_old_file(folder, name, call, origin)
            if plus:
                self._end_of_argument(Location(folder.name, name, None), call)

    def _end_of_argument(self, location: Location, call: tuple[str, str]) -> None:
        """A file with an argument is the last word on it: whatever it leaves open is denied."""
        anyvm = parse_token("@anyvm", Place.SOURCE)
        for target in ("@anyvm", "@adminvm"):
            self._rule(Rule(location, *call, anyvm, parse_token(target, Place.TARGET), Action.DENY, notify=True))

    def _lines(self, folder: Folder, path: str, origin: Location) -> Iterator[tuple[int, str]]:
        """Lines with their numbers; a file that cannot be read is a problem of the line that names it."""
        with self._opened(folder, path, origin) as text:
            # Text files end their lines with \n, \r or \r\n; form feeds and the like are white space.
            yield from enumerate(io.StringIO(text, newline=None), 1)

    @contextmanager
    def _opened(self, folder: Folder, path: str, origin: Location) -> Iterator[str]:
        file = (folder.name, folder.label(path))
        self._files_read += 1
        if self._files_read > MAX_FILES:
            self._stop(origin, f"more than {MAX_FILES} files")
        text = ""
        if file in self._open:
            self._problem(origin, f"{file[1]!a} includes itself: {' > '.join(name for _, name in self._open)}")
        elif len(self._open) == MAX_DEPTH:
            self._problem(origin, f"more than {MAX_DEPTH} files include one another")
        else:
            try:
                text = folder.read(path)
            except FolderError as error:
                self._problem(origin, f"{path!a}: {error}")
        self._open.append(file)
        try:
            yield text
        finally:
            self._open.pop()

    def _rule(self, rule: Rule) -> None:
        if len(self._rules) == MAX_RULES:
            self._stop(rule.location, f"more than {MAX_RULES} rules")
        self._rules.append(rule)

    def _wrong_line(self, location: Location, error: LineError) -> None:
        # A file from elsewhere may be any file at all; its words do not go to whoever wrote the include.
        outside = location.file.startswith("/")
        self._problem(location, "this is no line of a policy" if outside else str(error))

    def _problem(self, location: Location, reason: str, *, is_file_name: bool = False) -> None:
        self._problems.append(Problem(location, reason, is_file_name))
        if len(self._problems) == MAX_PROBLEMS:
            raise _Stop

    def _stop(self, location: Location, reason: str) -> None:
        self._problem(location, reason)
        raise _Stop


def _is_old_file(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(_NOT_OLD) and is_service_file(name)


def _old_order(name: str) -> tuple[str, bool, str]:
    """By service; files with an argument, sorted, before the one without."""
    service, plus, argument = name.partition("+")
    return service, not plus, argument
