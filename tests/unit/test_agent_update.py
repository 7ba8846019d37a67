"""The service that updates a system: what it asks of the package manager, and what it says of how that ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2] / "src/insula_agent/rpc/insula.Update"

APT = """\
#!/bin/sh
echo "$*" >> {calls}
case "$*" in
*--simulate*) echo "Inst something" ;;
*No-Cache*) exit {anew} ;;
*--download-only*) exit {download} ;;
esac
exit 0
"""


def update(folder: Path, *, download: int = 0, anew: int = 0) -> tuple[int, list[str]]:
    """Exit status, and what apt-get was called with. ``anew``: its status where copies from before are not wanted."""
    calls = folder / "calls"
    for name, text in (
        ("apt-get", APT.format(calls=calls, download=download, anew=anew)),
        ("qrexec-client-vm", "#!/bin/sh\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [SERVICE], env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, check=False, timeout=120,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return done.returncode, [line.rsplit(" ", 1)[1] for line in calls.read_text().splitlines()]


def test_packages_are_fetched_and_then_installed(tmp_path: Path) -> None:
    assert update(tmp_path) == (0, ["update", "dist-upgrade", "dist-upgrade", "dist-upgrade", "clean"])
    fetched, installed = (tmp_path / "calls").read_text().splitlines()[2:4]
    assert "--download-only" in fetched
    assert "--download-only" not in installed


def test_packages_that_were_not_good_are_asked_for_anew_once(tmp_path: Path) -> None:
    assert update(tmp_path, download=100) == (0, ["update"] + ["dist-upgrade"] * 4 + ["clean"])
    first, second, installed = (tmp_path / "calls").read_text().splitlines()[2:5]
    assert "No-Cache" not in first
    assert "Acquire::http::No-Cache=true" in second
    assert "No-Cache" not in installed


@pytest.mark.parametrize("status", [1, 100])
def test_packages_that_do_not_come_are_told_and_nothing_is_installed(tmp_path: Path, status: int) -> None:
    code, calls = update(tmp_path, download=status, anew=status)
    assert code == 22
    assert calls == ["update"] + ["dist-upgrade"] * 3
