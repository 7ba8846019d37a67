"""docs/howto/add-a-service.md does what it says: its file is a service, its line allows the call and no other.

With real qubes: vm/test_filecopy.py::test_service_of_the_howto.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from insula.policy.decisions import Allow, Request
from insula.policy.engine import evaluate
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.snapshot import QubeFacts, Snapshot
from insula_proto.services import Executable, ServiceCall, locate

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "add-a-service.md"
SERVICE, LINE, CALL = re.findall(r"^```\w*\n(.*?)^```", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
DEFAULT = Path(__file__).parents[2] / "policy.d" / "90-default.policy"


def decision(source: str, target: str) -> object:
    folder = MemoryFolder({"30-user.policy": LINE, "90-default.policy": DEFAULT.read_text()})
    policy = load(Sources([folder]))
    policy.check()
    qubes = [QubeFacts(name, name[0], power_state="Running") for name in ("work", "vault", "other")]
    return evaluate(Request("example.Shout", "+", source, target), policy, Snapshot(qubes))


def test_line_allows_the_call_and_no_other() -> None:
    assert isinstance(decision("work", "vault"), Allow)
    assert not any(
        isinstance(decision(*pair), Allow) for pair in [("vault", "work"), ("other", "vault"), ("work", "other")]
    )


def test_file_is_found_and_does_what_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "example.Shout"
    path.write_text(SERVICE)
    path.chmod(0o755)
    found = locate(ServiceCall("example.Shout+!", "work", "", ""), str(tmp_path))
    assert isinstance(found, Executable)
    assert found.path == str(path)
    assert CALL == "echo hello | qrexec-client-vm vault example.Shout\n"
    done = subprocess.run([path, "more"], input=b"hello\n", capture_output=True, check=True, timeout=120)
    assert done.stdout == b"HELLO\nmore"
