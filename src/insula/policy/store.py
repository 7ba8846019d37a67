"""Policy files on disk as a whole: load, read, change (the calls ``policy.*`` of qrexec §7, "Policy admin").

A change names the version it is based on by a *token*, is parsed together with all other files before anything is
written, and replaces the file by one rename. Readers and writers lock the folder, so nobody loads half of two changes
(MC-29, MC-30). All functions block: call them from a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.policy.disk import MAX_FILE_BYTES, DiskFolder, read_bytes
from insula.policy.errors import (
    Location,
    PolicyAdminException,
    PolicyAdminFileNotFoundException,
    PolicyAdminInvalidFileNameException,
    PolicyAdminInvalidFilePathException,
    PolicyAdminProtocolException,
    PolicyAdminSyntaxException,
    PolicyAdminTokenException,
    Problem,
)
from insula.policy.folders import Folder, FolderError
from insula.policy.loader import Sources, load
from insula.policy.rules import ANY
from insula.policy.ruleset import Policy
from insula.policy.syntax import LineError, parse_line

INCLUDE = "include"
"""Folder of files meant to be included, by convention."""
ANY_TOKEN = "any"  # noqa: S105
"""Whatever is there."""
NEW_TOKEN = "new"  # noqa: S105
"""There must be no such file."""
REGISTERED = "60-registered-arguments"
"""File that :meth:`PolicyStore.register_argument` writes (qrexec §7)."""
MAX_REGISTERED_ARGUMENT = 64
"""Characters; qrexec §7."""
LOCK_WAIT_S = 5.0
"""For the folder's lock. Whoever holds it parses a policy, which takes a fraction of this."""

_SUFFIX = ".policy"
_MODE = 0o644
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FILE_NAME = re.compile(r"[a-z0-9_-]+")
"""Of files directly in the folder: with capitals, a file would make the whole policy invalid."""
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_LOCK_POLL_S = 0.01


def token_of(content: bytes) -> str:
    """The version of a file's content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class PolicyStore:
    def __init__(self, folder: Path, *, runtime: Path | None = None, compat: Path | None = None) -> None:
        """
        :param folder: the policy; must exist when loaded.
        :param runtime: a folder whose files win over those of the same name; must exist if given.
        :param compat: the folder of the old format.
        """
        self._folder = folder
        self._runtime = runtime
        self._compat = compat

    @property
    def folder(self) -> Path:
        return self._folder

    def load(self, on_look: Callable[[Path], None] | None = None) -> Policy:
        """The policy as it is on disk. Never raises: what cannot be read makes a policy that denies everything.

        :param on_look: told of every file and folder before it is read.
        """
        try:
            with self._locked(fcntl.LOCK_SH):
                return load(self._sources(DiskFolder(self._folder, on_look), on_look))
        except PolicyAdminException as error:
            return Policy((), [Problem(Location(str(self._folder), ".", None), str(error))])

    def names(self, *, include: bool = False) -> list[str]:
        """``policy.List``, ``policy.include.List``: sorted, without ``.policy``.

        :raise PolicyAdminFileNotFoundException: the folder cannot be read.
        """
        try:
            found = DiskFolder(self._folder).names(INCLUDE if include else "")
        except FolderError as error:
            if include and not (self._folder / INCLUDE).exists():
                return []
            raise PolicyAdminFileNotFoundException(f"Folder {str(self._folder)!a}: {error}") from error
        if include:
            return sorted(name for name in found if not name.startswith((".", "!")))
        return sorted(
            name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX) and not name.startswith(".")
        )

    def get(self, untrusted_name: str, *, include: bool = False) -> tuple[str, bytes]:
        """``policy.Get``, ``policy.include.Get``: token and content.

        :raise PolicyAdminInvalidFileNameException, PolicyAdminInvalidFilePathException:
        :raise PolicyAdminFileNotFoundException:
        """
        content = self._content(self._path(untrusted_name, include))
        if content is None:
            raise PolicyAdminFileNotFoundException(f"There is no policy file {untrusted_name!a}")
        return token_of(content), content

    def replace(self, untrusted_name: str, untrusted_content: bytes, token: str, *, include: bool = False) -> None:
        """``policy.Replace``, ``policy.include.Replace``: all of it, or nothing.

        :raise PolicyAdminTokenException: the file is not in the version ``token`` says.
        :raise PolicyAdminSyntaxException: with this content there is no valid policy; the message has file and line.
        :raise PolicyAdminProtocolException: too large.
        :raise PolicyAdminInvalidFileNameException, PolicyAdminInvalidFilePathException:
        """
        path = self._path(untrusted_name, include)
        if len(untrusted_content) > MAX_FILE_BYTES:
            raise PolicyAdminProtocolException(f"A policy file has at most {MAX_FILE_BYTES} bytes")
        with self._locked(fcntl.LOCK_EX):
            self._check_token(path, token)
            self._check_change(path, untrusted_content)
            self._write(path, untrusted_content)

    def remove(self, untrusted_name: str, token: str, *, include: bool = False) -> None:
        """``policy.Remove``, ``policy.include.Remove``. Refused while another file includes it.

        :raise PolicyAdminFileNotFoundException, PolicyAdminTokenException, PolicyAdminSyntaxException:
        :raise PolicyAdminInvalidFileNameException, PolicyAdminInvalidFilePathException:
        """
        path = self._path(untrusted_name, include)
        with self._locked(fcntl.LOCK_EX):
            if self._content(path) is None:
                raise PolicyAdminFileNotFoundException(f"There is no policy file {untrusted_name!a}")
            self._check_token(path, token)
            self._check_change(path, None)
            path.unlink()
            _sync_folder(path.parent)

    def files_for(self, service: str) -> list[str]:
        """``policy.GetFiles``: stems of the files with a rule for the service, in the order of the policy.

        :raise PolicyAdminSyntaxException: the policy is invalid.
        """
        policy = self.load()
        if policy.problems:
            raise _syntax_exception(list(policy.problems))
        found = (Path(rule.location.file).stem for rule in policy.rules if rule.service in (ANY, service))
        return list(dict.fromkeys(found))

    def register_argument(self, service: str, untrusted_argument: str, source: str, target: str) -> None:
        """``policy.RegisterArgument``: from now on ``source`` may call ``service+argument`` of ``target``.

        :raise PolicyAdminProtocolException: too long, or a word that cannot stand in a rule.
        :raise PolicyAdminSyntaxException: the policy is invalid as it is.
        """
        if len(untrusted_argument) > MAX_REGISTERED_ARGUMENT:
            raise PolicyAdminProtocolException(f"An argument has at most {MAX_REGISTERED_ARGUMENT} characters here")
        line = f"{service} +{untrusted_argument} {source} {target} allow"
        path = self._path(REGISTERED, include=False)
        try:
            rule = parse_line(line, Location("", path.name, None))
        except LineError as error:
            raise PolicyAdminProtocolException(str(error)) from error
        # Words with white space would have parsed into other words.
        if rule is None or str(rule) != line:
            raise PolicyAdminProtocolException("the words of the rule are not words of the policy language")
        with self._locked(fcntl.LOCK_EX):
            content = self._content(path) or b""
            if line.encode() in content.splitlines():
                return
            if content and not content.endswith(b"\n"):
                content += b"\n"
            content += line.encode() + b"\n"
            self._check_change(path, content)
            self._write(path, content)

    # parts

    def _sources(self, folder: Folder, on_look: Callable[[Path], None] | None = None) -> Sources:
        folders = [folder] if self._runtime is None else [DiskFolder(self._runtime, on_look), folder]
        return Sources(folders, self._old_folder(on_look))

    def _old_folder(self, on_look: Callable[[Path], None] | None = None) -> Folder | None:
        return None if self._compat is None else DiskFolder(self._compat, on_look)

    def _path(self, untrusted_name: str, include: bool) -> Path:
        if not (_NAME if include else _FILE_NAME).fullmatch(untrusted_name):
            raise PolicyAdminInvalidFileNameException(f"Invalid name of a policy file: {untrusted_name[:64]!a}")
        path = self._folder / INCLUDE / untrusted_name if include else self._folder / f"{untrusted_name}{_SUFFIX}"
        if path.is_symlink() or path.parent.is_symlink() or (path.exists() and not path.is_file()):
            raise PolicyAdminInvalidFilePathException(f"{untrusted_name!a} is not a file of the policy folder itself")
        return path

    def _content(self, path: Path) -> bytes | None:
        if not path.exists():
            return None
        try:
            return read_bytes(path)
        except FolderError as error:
            raise PolicyAdminFileNotFoundException(f"{path.name!a}: {error}") from error

    def _check_token(self, path: Path, token: str) -> None:
        if token == ANY_TOKEN:
            return
        content = self._content(path)
        if token == NEW_TOKEN:
            if content is not None:
                raise PolicyAdminTokenException(f"{path.name!a} is there already")
        elif not _SHA256.fullmatch(token):
            raise PolicyAdminTokenException("A token is any, new, or sha256: and 64 hexadecimal digits")
        elif content is None:
            raise PolicyAdminTokenException(f"{path.name!a} is not there any more")
        elif token != token_of(content):
            raise PolicyAdminTokenException(f"{path.name!a} was changed meanwhile; read it again")

    def _check_change(self, path: Path, untrusted_content: bytes | None) -> None:
        """Parse the policy as it would be.

        Problems that other files have already do not hinder, else two broken files could never be repaired. Without
        the run-time folder it is parsed once more, since a file there may hide the changed one.
        """
        changed = _ChangedFolder(self._folder, path, untrusted_content)
        problems = [
            problem
            for now, then in (
                (self._sources(DiskFolder(self._folder)), self._sources(changed)),
                (Sources([DiskFolder(self._folder)], self._old_folder()), Sources([changed], self._old_folder())),
            )
            for problem in _new_problems(load(now), load(then), changed.label(str(path)))
        ]
        if problems:
            raise _syntax_exception(list(dict.fromkeys(problems)))

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        # As published. Without the suffix: a loader that does not lock passes over it.
        temporary = path.with_name(f"!{path.name.removesuffix(_SUFFIX)}")
        temporary.unlink(missing_ok=True)  # of a writer that was killed
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, _MODE)
            os.fsync(descriptor)
        temporary.replace(path)
        _sync_folder(path.parent)

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PolicyAdminFileNotFoundException(
                f"Policy folder {str(self._folder)!a}: {(error.strerror or str(error)).lower()}"
            ) from error
        try:
            _lock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)


class _ChangedFolder(DiskFolder):
    """A folder on disk as it would be with one file changed or (None) removed."""

    def __init__(self, path: Path, changed: Path, content: bytes | None) -> None:
        super().__init__(path)
        self._changed = self.label(str(changed))
        self._content = content

    def names(self, path: str = "") -> list[str]:
        parent, _, name = self._changed.rpartition("/")
        is_here = self.label(path or ".") == (parent or self.label("."))
        try:
            found = super().names(path)
        except FolderError:
            if not is_here or self._content is None:
                raise
            found = []  # the folder is made with its first file
        if not is_here:
            return found
        found = [other for other in found if other != name]
        return found if self._content is None else [*found, name]

    def read(self, path: str) -> str:
        if self.label(path) != self._changed:
            return super().read(path)
        if self._content is None:
            raise FolderError("there is no such file")
        try:
            return self._content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FolderError(f"it is not UTF-8 text (byte {error.start})") from error


def _new_problems(now: Policy, then: Policy, changed: str) -> list[Problem]:
    known = {problem for problem in now.problems if problem.location.file != changed}
    return [problem for problem in then.problems if problem not in known]


def _syntax_exception(problems: list[Problem]) -> PolicyAdminSyntaxException:
    message = "; ".join(f"{problem.location}: {problem.reason}" for problem in problems)
    return PolicyAdminSyntaxException(message, tuple(problems))


def _lock(descriptor: int, operation: int) -> None:
    """:raise PolicyAdminException: it is held for longer than anybody should."""
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise PolicyAdminException(f"The policy folder was locked for {LOCK_WAIT_S:g} seconds") from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
