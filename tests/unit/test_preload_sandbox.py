"""The steps into the sandbox, without the filter that comes last: what each of them alone achieves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from insula.preload import sandbox
from insula.preload.syscalls import Namespaces

INSIDE = """
import json, os, resource, signal, socket, sys
from pathlib import Path
from insula.preload import sandbox
kinds = ("user", "mnt", "net", "ipc", "uts", "cgroup")
def links():
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
before = links()
uid = int(sys.argv[1])
if uid:
    sandbox.become(uid)
# The last step of leaving takes /proc away; look before it.
facts, empty_root = {}, sandbox._empty_root
def observed():
    facts["new"] = sorted(kind for kind, link in links().items() if link != before[kind])
    facts["maps"] = [Path(f"/proc/self/{name}_map").read_text().split() for name in ("uid", "gid")]
    empty_root()
sandbox._empty_root = observed
sandbox.leave_host(sandbox.namespaces())
child = os.fork()
if child == 0:
    sandbox.give_up_rights(sandbox.Limits(64, 2**30))
    sandbox.end_growth()
    def attempt(deed, *arguments):
        try:
            return str(deed(*arguments))
        except OSError as error:
            return error.strerror
    facts["pid"] = os.getpid()
    facts["ids"] = [os.getuid(), os.getgid(), *(os.getgroups() if uid else [])]
    facts["root"] = os.listdir("/")
    facts["above"] = os.listdir("/..")
    facts["host"] = socket.gethostname()
    facts["interfaces"] = [name for _, name in socket.if_nameindex()]
    facts["attempts"] = {
        "write": attempt(os.mkdir, "/made"),
        "fork": attempt(os.fork),
        "signal": attempt(os.kill, 2, 0),
        "namespace": attempt(sandbox.syscalls.unshare, sandbox.Namespaces.USER),
        "network namespace": attempt(sandbox.syscalls.unshare, sandbox.Namespaces.NET),
        "mount": attempt(empty_root),
    }
    facts["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts["own session"] = os.getsid(0) == os.getpid()
    print(json.dumps(facts), flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

UID = 0x7000_0007 if os.geteuid() == 0 else 0


@pytest.fixture(scope="module")
def inside() -> Mapping[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, str(UID)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert isinstance(facts, dict)
    return facts


def test_every_kind_of_namespace_is_new(inside: Mapping[str, object]) -> None:
    assert inside["new"] == ["cgroup", "ipc", "mnt", "net", "user", "uts"]
    assert inside["pid"] == 1


def test_user_is_mapped_to_itself_alone(inside: Mapping[str, object]) -> None:
    uid, gid = (UID, UID) if UID else (os.geteuid(), os.getegid())
    assert inside["maps"] == [[str(uid), str(uid), "1"], [str(gid), str(gid), "1"]]
    assert inside["ids"] == [uid, gid]


def test_root_is_empty_and_there_is_nothing_above_it(inside: Mapping[str, object]) -> None:
    assert inside["root"] == inside["above"] == []


def test_network_has_no_interface_of_the_host(inside: Mapping[str, object]) -> None:
    assert inside["interfaces"] in ([], ["lo"])
    assert inside["host"] == sandbox.HOST_NAME


def test_rights_are_gone(inside: Mapping[str, object]) -> None:
    assert inside["attempts"] == {
        "write": "Read-only file system",
        "fork": "Resource temporarily unavailable",
        "signal": "No such process",
        "namespace": "unshare: No space left on device",  # their number is bounded to none
        "network namespace": "unshare: Operation not permitted",
        "mount": "mount /: Operation not permitted",
    }
    assert inside["files"] == [64, 64]
    assert inside["own session"]


def test_all_kinds_of_namespaces_are_asked_for() -> None:
    wanted = Namespaces.USER | Namespaces.MOUNT | Namespaces.PID | Namespaces.NET | Namespaces.IPC | Namespaces.UTS
    assert sandbox.namespaces() in (wanted, wanted | Namespaces.CGROUP)
