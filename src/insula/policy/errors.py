"""Errors of the policy room.

::

    PolicyError
    ├── PolicySyntaxError                       the policy has problems, listed with file and line
    └── PolicyAdminException                    a change or a question about files is refused
        ├── PolicyAdminProtocolException        the call is malformed
        ├── PolicyAdminSyntaxException          what would be saved is not a policy
        ├── PolicyAdminTokenException           the file is not in the version the change was based on
        ├── PolicyAdminFileNotFoundException
        ├── PolicyAdminInvalidFileNameException
        └── PolicyAdminInvalidFilePathException

Below PolicyAdminException the class name *is* the wire name (qrexec §7, policy admin).
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.errors import InsulaError


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a policy file."""

    folder: str
    """Where the file was looked up, as people know it; a path on disk."""
    file: str
    """Path of the file in ``folder``; absolute if it was included from elsewhere."""
    line: int | None
    """From 1. None: the file as a whole, or a rule that stands in no line (the end of an old file)."""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def full(self) -> str:
        """With the folder, for people who have several."""
        return str(self) if self.file.startswith("/") or not self.folder else f"{self.folder}/{self}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a policy is not one."""

    location: Location
    reason: str
    is_file_name: bool = False
    """A file's name is not allowed. The user is told about calls denied by this one (as published), not by others."""

    def __str__(self) -> str:
        return f"{self.location.full}: {self.reason}"


class PolicyError(InsulaError): ...


class PolicySyntaxError(PolicyError):
    """``problems``: at least one, in the order found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class PolicyAdminException(PolicyError): ...


class PolicyAdminProtocolException(PolicyAdminException): ...


class PolicyAdminSyntaxException(PolicyAdminException):
    """``problems``: those the change would bring, or that there are; the message has them all."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class PolicyAdminTokenException(PolicyAdminException): ...


class PolicyAdminFileNotFoundException(PolicyAdminException): ...


class PolicyAdminInvalidFileNameException(PolicyAdminException): ...


class PolicyAdminInvalidFilePathException(PolicyAdminException): ...
