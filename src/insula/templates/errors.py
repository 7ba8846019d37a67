"""Errors of template builds.

TemplateError
├── Unbuildable      this machine cannot build templates as it is; the message says what is missing
└── BuildFailed      a step failed; the next build continues from the steps that had finished
"""

from __future__ import annotations

from insula.model.errors import QubesException


class TemplateError(QubesException):
    """Base of both. ``str()`` is the message for the user."""


class Unbuildable(TemplateError): ...


class BuildFailed(TemplateError):
    """``step`` failed; ``tail`` holds the last lines its programs printed."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail
