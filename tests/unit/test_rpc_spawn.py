"""The sandbox of a session: what it shows, proved by running a probe inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from insula.rpc.spawn import SESSION_UID_BASE, sandbox_command, session_command

PROBE = """
import json, os, socket, sys
sys.path[:0] = sys.argv[1].split(':')
import insula.rpc.session
def status():
    try:
        return dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
    except FileNotFoundError:
        return {}
def writable(path):
    try:
        open(path + '/probe', 'w').close()
        return True
    except OSError:
        return False
facts = {
    'uid': os.getuid(), 'pid': os.getpid(), 'environment': dict(os.environ), 'root': sorted(os.listdir('/')),
    'host': socket.gethostname(), 'interfaces': [name for _, name in socket.if_nameindex()],
    'writable': [path for path in ('/', '/usr', '/usr/bin', '/tmp') if writable(path)],
    'namespaces': {}, 'capabilities': status().get('CapEff', '').strip(),
}
print(json.dumps(facts))
"""


def probe(uid: int | None) -> dict[str, object]:
    command = session_command(0, 1, 2)
    folders = command[command.index("-c") + 2]
    probing = [*command[: command.index("-c")], "-c", PROBE, folders]
    done = subprocess.run(
        sandbox_command(probing, uid), capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, "SECRET": "planted"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert isinstance(facts, dict)
    return facts


USERS = [None, SESSION_UID_BASE + 7] if os.geteuid() == 0 else [None]


@pytest.mark.parametrize("uid", USERS)
def test_sandbox_session_can_be_imported_and_sees_nothing_else(uid: int | None) -> None:
    facts = probe(uid)
    assert facts["host"] == "session"
    assert facts["writable"] == []
    assert facts["interfaces"] in ([], ["lo"])
    # Only the way to the Python installation may show, wherever that is.
    seen = set(map(str, facts["root"])) - {Path(sys.base_prefix).resolve().parts[1]}  # type: ignore[call-overload]
    assert not {"etc", "home", "tmp", "var", "run", "dev", "work", "root"} & seen
    assert "SECRET" not in facts["environment"]  # type: ignore[operator]
    assert int(facts["capabilities"] or "0", 16) == 0  # type: ignore[call-overload]
    if uid is not None:
        assert facts["uid"] == uid


def test_sandbox_of_the_daemons_own_user_has_all_namespaces() -> None:
    command = sandbox_command(["true"], None)
    for name in ("user", "pid", "net", "ipc", "uts"):
        assert f"--unshare-{name}" in command
    assert "--die-with-parent" in command
    assert command[-2:] == ["--", "true"]


def test_sandbox_of_another_user_gives_up_root_before_the_program_runs() -> None:
    command = sandbox_command(["true"], 1879048199)
    assert command.index("/usr/bin/setpriv") < command.index("/usr/bin/unshare") < command.index("true")
    assert "--reuid=1879048199" in command
    assert "--clear-groups" in command
    assert "--no-new-privs" in command


def test_session_command_is_isolated_and_names_every_folder() -> None:
    command = session_command(3, 4, 5)
    assert command[1:4] == ["-I", "-S", "-B"]
    assert command[-3:] == ["3", "4", "5"]
    assert Path(command[0]).is_relative_to(Path(sys.base_prefix).resolve())
