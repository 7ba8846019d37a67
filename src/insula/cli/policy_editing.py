"""Changing one policy file by hand: a copy of it in the user's editor, checked before it becomes the file.

The file itself is never open in an editor: half of a change would be half of a policy, and one mistake denies every
call. What was typed is never lost either: where it cannot be saved, it stays in a file of its own, and the user is told
where.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from insula.cli.failures import CliError
from insula.policy.errors import (
    PolicyAdminException,
    PolicyAdminFileNotFoundException,
    PolicyAdminSyntaxException,
    Problem,
)
from insula.policy.store import NEW_TOKEN, PolicyStore

EDITORS = ("sensible-editor", "editor", "nano", "vi")
"""Tried in this order where neither VISUAL nor EDITOR says which."""
_TAKES_A_LINE = frozenset({"vi", "vim", "nvim", "nano", "emacs"})
"""Editors that begin in the line of an argument ``+LINE``."""


@dataclass(frozen=True)
class PolicyFile:
    """One file of the policy, as commands name it."""

    store: PolicyStore
    name: str
    is_include: bool

    def read(self) -> tuple[str, bytes]:
        """Token and content; those of a file that is to be made if there is none.

        :raise PolicyAdminException: the name is none, or the file cannot be read.
        """
        try:
            return self.store.get(self.name, include=self.is_include)
        except PolicyAdminFileNotFoundException:
            if self.name in self.store.names(include=self.is_include):
                raise
            return NEW_TOKEN, b""


def editor_command(environ: Mapping[str, str]) -> list[str]:
    """:raise CliError: there is no editor."""
    chosen = environ.get("VISUAL") or environ.get("EDITOR")
    if chosen:
        try:
            words = shlex.split(chosen)
        except ValueError as error:
            raise CliError(f"EDITOR cannot be read as a command: {error}") from error
        if words:
            return words
    for name in EDITORS:
        if shutil.which(name, path=environ.get("PATH")):
            return [name]
    raise CliError("no editor was found", hint="set EDITOR")


def edit(file: PolicyFile, say: Callable[[str], None], may_try_again: Callable[[], bool]) -> bool:
    """Let the user edit the file; True if it was saved, False if there was nothing to save.

    :param say: a line for the user.
    :param may_try_again: asks the user after a refusal.
    :raise CliError: not saved.
    :raise PolicyAdminException: the file cannot be read.
    """
    token, before = file.read()
    command = editor_command(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="insula-policy-"))
    copy = folder / (file.name if file.is_include else f"{file.name}.policy")
    copy.write_bytes(before)
    is_saved = False
    try:
        content = _edited(command, copy, None)
        while content != before:
            try:
                file.store.replace(file.name, content, token, include=file.is_include)
            except PolicyAdminSyntaxException as error:
                for problem in error.problems:
                    say(f"{problem.location}: {problem.reason}")
                if not may_try_again():
                    raise CliError("not saved: it would not be a valid policy") from error
                content = _edited(command, copy, _line_in(error.problems, copy.name))
            except PolicyAdminException as error:
                raise CliError(f"not saved: {error}") from error
            else:
                is_saved = True
                return True
        return False
    finally:
        if is_saved or not copy.exists() or copy.read_bytes() == before:
            shutil.rmtree(folder)
        else:
            say(f"what you wrote is in {copy}")


def _edited(command: list[str], copy: Path, line: int | None) -> bytes:
    """:raise CliError: the editor failed."""
    at_line = [f"+{line}"] if line is not None and Path(command[0]).name in _TAKES_A_LINE else []
    try:
        code = subprocess.run([*command, *at_line, str(copy)], check=False).returncode
    except OSError as error:
        raise CliError(f"the editor {command[0]!r} does not start: {error.strerror}", hint="set EDITOR") from error
    if code != 0:
        raise CliError(f"not saved: the editor ended with status {code}")
    try:
        return copy.read_bytes()
    except OSError as error:
        raise CliError(f"not saved: the editor left no file: {error.strerror}") from error


def _line_in(problems: tuple[Problem, ...], name: str) -> int | None:
    """The first line of the edited file that is wrong."""
    lines = [problem.location.line for problem in problems if Path(problem.location.file).name == name]
    return next((line for line in lines if line is not None), None)
