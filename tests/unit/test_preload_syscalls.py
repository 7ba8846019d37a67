from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from insula.preload import syscalls
from insula.preload.syscalls import MountFlags

CHANGED = """
import json, os
from insula.preload import syscalls
os.dup2(1, 200)
syscalls.set_name("a-name-that-is-too-long-for-the-kernel")
syscalls.set_no_new_privs()
syscalls.close_from(100)
before = {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status")}
syscalls.drop_capabilities() if os.geteuid() == 0 else None
after = {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status")}
print(json.dumps({"after": after, "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))}))
"""


@pytest.fixture
def changed() -> dict[str, dict[str, str]]:
    """Status of a process that has called several of them."""
    done = subprocess.run([sys.executable, "-c", CHANGED], capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_name_is_cut_to_what_the_kernel_keeps(changed: dict[str, dict[str, str]]) -> None:
    assert changed["after"]["Name"] == "a-name-that-is-"


def test_no_new_privs_is_set(changed: dict[str, dict[str, str]]) -> None:
    assert changed["after"]["NoNewPrivs"] == "1"


def test_descriptors_from_a_number_on_are_closed(changed: dict[str, dict[str, str]]) -> None:
    assert max(map(int, changed["descriptors"])) < 100


def test_every_set_of_capabilities_is_emptied(changed: dict[str, dict[str, str]]) -> None:
    sets = ["CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if os.geteuid() == 0 else [])]
    assert {changed["after"][name] for name in sets} == {"0" * 16}


def test_refused_call_raises_with_its_name_and_number() -> None:
    with pytest.raises(OSError, match="mount /nonesuch/below") as caught:
        syscalls.mount("none", "/nonesuch/below", "tmpfs", MountFlags.RDONLY)
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    with pytest.raises(OSError, match="pivot_root"):
        syscalls.pivot_root("/nonesuch", "/nonesuch")
    with pytest.raises(OSError, match="umount"):
        syscalls.detach("/nonesuch")


def test_filter_that_is_none_is_refused() -> None:
    with pytest.raises(OSError, match="PR_SET_SECCOMP"):
        syscalls.install_filter(b"")
