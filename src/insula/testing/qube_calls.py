"""Calls between two "qubes" that are folders: a stand-in for ``qrexec-client-vm`` that starts the service here.

For tests of the commands people type in a qube and of the services they call: both are the real programs, as processes
of their own, between real pipes. What is left out is the way between two machines.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parents[2]
"""What is installed as ``/usr/lib/insula`` in a qube."""
AGENT = SOURCES / "insula_agent"
TIMEOUT_S = 120

_CLIENT = """\
#!/bin/sh
# Options, --, TARGET, SERVICE[+ARGUMENT]: the service, started here as the agent of the other qube would.
while [ "$1" != -- ]; do shift; done
printf '%s\\n' "$2 $3" >> "$CALLS"
[ ! -e "$REFUSE" ] || exit 126
service=${3%%+*}
argument=${3#"$service"}
argument=${argument#+}
QREXEC_REMOTE_DOMAIN=work
QREXEC_SERVICE_FULL_NAME=$3
HOME=$OTHER_HOME
export QREXEC_REMOTE_DOMAIN QREXEC_SERVICE_FULL_NAME HOME
exec "$SERVICES/$service" ${argument:+"$argument"}
"""


class TwoQubes:
    """A caller's folder ``here`` and the home of the qube it calls."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "here"
        self.home = folder / "home"
        self.room = self.home / "QubesIncoming" / "work"
        self._tools = folder / "tools"
        self._calls = folder / "calls"
        self._refuse = folder / "refuse"
        self.services = AGENT / "rpc"
        for path in (self.here, self.home, self._tools):
            path.mkdir()
        client = self._tools / "qrexec-client-vm"
        client.write_text(_CLIENT)
        client.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """``TARGET SERVICE`` of each call so far."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def refuse(self) -> None:
        """From now on no call is allowed."""
        self._refuse.touch()

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self._tools}:{os.environ['PATH']}",
            "INSULA_LIBRARY": str(SOURCES),
            "CALLS": str(self._calls),
            "REFUSE": str(self._refuse),
            "SERVICES": str(self.services),
            "OTHER_HOME": str(self.home),
            "HOME": str(self.here),
            "LC_ALL": "C.UTF-8",
            **more,
        }

    def command(self, name: str, *arguments: str | Path) -> list[str]:
        return [str(AGENT / "bin" / name), *map(str, arguments)]

    def run(
        self, name: str, *arguments: str | Path, stdin: bytes = b"", more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in ``here``."""
        return subprocess.run(
            self.command(name, *arguments), cwd=self.here, env=self.environment(**(more or {})), input=stdin,
            capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def serve(
        self, name: str, stdin: bytes, arguments: Sequence[str] = (), **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Call a service with these bytes."""
        environment = {**self.environment(**more), "HOME": str(self.home), "QREXEC_REMOTE_DOMAIN": "work"}
        return subprocess.run(
            [self.services / name, *arguments], env={**environment, **more}, input=stdin,
            capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
