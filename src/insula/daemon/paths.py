"""Where things are on the host: one frozen value, computed once, handed to everything that needs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Folders and files of one installation. ``data`` survives a reboot, ``runtime`` does not."""

    data: Path
    runtime: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, euid: int | None = None) -> Paths:
        """``INSULA_DATA_DIR`` and ``INSULA_RUNTIME_DIR`` if set, else the places of the user's (or root's) account."""
        env = os.environ if environ is None else environ
        is_root = (os.geteuid() if euid is None else euid) == 0
        if is_root:
            data, runtime = Path("/var/lib/insula"), Path("/run/insula")
        else:
            data = Path(env.get("XDG_DATA_HOME") or Path(env.get("HOME", "/")) / ".local/share") / "insula"
            runtime = Path(env.get("XDG_RUNTIME_DIR") or data / "run") / "insula"
        data = Path(env.get("INSULA_DATA_DIR") or data)
        runtime = Path(env.get("INSULA_RUNTIME_DIR") or runtime)
        return cls(data.absolute(), runtime.absolute())

    @property
    def database(self) -> Path:
        return self.data / "system.db"

    @property
    def default_pool(self) -> Path:
        return self.data / "pools" / "default"

    @property
    def kernels(self) -> Path:
        """One folder a kernel version, each with ``vmlinuz``, ``initrd`` and ``cmdline``."""
        return self.data / "kernels"

    @property
    def templates(self) -> Path:
        """Build cache of templates."""
        return self.data / "templates"

    @property
    def policy(self) -> Path:
        """Rules for calls between qubes, ``*.policy``."""
        return self.data / "policy.d"

    @property
    def applications(self) -> Path:
        """What qubes told of their applications, a file each."""
        return self.data / "applications"

    @property
    def host_mark(self) -> Path:
        """What makes dialogs of the host known from copies that a qube draws."""
        return self.data / "host-mark"

    @property
    def seeds(self) -> Path:
        """Frozen systems that qubes are forked from; can be made anew at any time."""
        return self.data / "seeds"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def calls_log(self) -> Path:
        """What qubes asked of one another, one JSON object a line (``insula.rpc.call_log``)."""
        return self.logs / "calls.log"

    @property
    def admin_socket(self) -> Path:
        return self.runtime / "insulad.sock"

    @property
    def internal_socket(self) -> Path:
        return self.runtime / "insulad.internal.sock"

    @property
    def policy_agent_socket(self) -> Path:
        """Where the program listens that asks the user (``insula.policy.agent``)."""
        return self.runtime / "policy-agent.sock"

    @property
    def desktop_note(self) -> Path:
        """Which desktop windows were shown on last."""
        return self.runtime / "desktop.json"

    @property
    def lock(self) -> Path:
        return self.runtime / "insulad.lock"

    def qube(self, name: str) -> Path:
        """Run-time folder of one qube: its sockets, its console log."""
        return self.runtime / "qubes" / name

    def rpc_socket(self, name: str) -> Path:
        """Where clients reach the qube's session process."""
        return self.qube(name) / "rpc.sock"

    def make(self) -> None:
        """Create the folders, closed to everybody else (0700)."""
        for folder in (self.data, self.runtime, self.runtime / "qubes", self.logs, self.kernels, self.templates):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.data, self.runtime):
            folder.chmod(0o700)
