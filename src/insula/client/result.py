"""What a command left behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    exit_code: int
    """The command's own; 127: not found; 128 + N: ended by signal N; 255: also a channel that was lost."""
    stdout: bytes
    """As the qube wrote it, and therefore whatever it liked: decode, parse and show it with care."""
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, what is not UTF-8 as ``\\xNN``, without the newline at the end."""
        return self.stdout.decode("utf-8", "backslashreplace").removesuffix("\n")
