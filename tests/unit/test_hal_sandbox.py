from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from insula.hal.driver import MAX_HOST_NUMBER
from insula.hal.qemu.sandbox import HostDevices, SandboxFacts, is_visible_inside, sandbox_argv, vmm_uid

FACTS = SandboxFacts("/usr/bin/bwrap", "/usr/bin/prlimit", 512, {"bin": "usr/bin", "lib": "usr/lib", "lib64": None})
COMMAND = ("/usr/bin/true", "--bind", "/", "/")


def bwrap_options(facts: SandboxFacts = FACTS, **fds: int) -> tuple[str, ...]:
    """What bubblewrap takes as its own options: up to the ``--`` in front of the command."""
    argv = sandbox_argv(facts, COMMAND, **fds)
    start = argv.index(facts.bwrap) + 1
    return argv[start : argv.index("--", start)]


def test_command_is_behind_the_end_of_options() -> None:
    argv = sandbox_argv(FACTS, COMMAND)
    assert argv[-len(COMMAND) - 1 :] == ("--", *COMMAND)


@pytest.mark.parametrize("kind", ["user", "pid", "net", "ipc", "uts"])
def test_namespace_is_required_not_tried(kind: str) -> None:
    assert f"--unshare-{kind}" in bwrap_options()


def test_only_usr_and_its_links_come_from_the_host() -> None:
    options = bwrap_options()
    binds = [options[index + 1] for index, word in enumerate(options) if "bind" in word]
    assert binds == ["/usr", "/lib64"]
    links = [options[index + 1 : index + 3] for index, word in enumerate(options) if word == "--symlink"]
    assert links == [("usr/bin", "/bin"), ("usr/lib", "/lib")]


def test_root_is_made_read_only_last() -> None:
    assert bwrap_options()[-2:] == ("--remount-ro", "/")


def test_kvm_node_appears_only_if_asked_for() -> None:
    assert "/dev/kvm" not in bwrap_options()
    assert "/dev/kvm" in bwrap_options(replace(FACTS, kvm=True))


def test_devices_are_seen_through_their_nodes_and_their_own_folders_alone() -> None:
    devices = HostDevices(("/dev/vfio/vfio", "/dev/vfio/9"), {"0000:05:00.0": "/sys/devices/pci0000:00/x"}, 123)
    options = bwrap_options(replace(FACTS, devices=devices))
    triples = [options[index : index + 3] for index, word in enumerate(options) if "bind" in word]
    assert triples[2:] == [
        ("--dev-bind", "/dev/vfio/vfio", "/dev/vfio/vfio"),
        ("--dev-bind", "/dev/vfio/9", "/dev/vfio/9"),
        ("--ro-bind", "/sys/devices/pci0000:00/x", "/sys/bus/pci/devices/0000:05:00.0"),
    ]
    assert "--memlock=123:123" in sandbox_argv(replace(FACTS, devices=devices), COMMAND)
    assert not any("memlock" in word for word in sandbox_argv(FACTS, COMMAND))


def test_rights_and_environment_are_dropped_and_nothing_dies_with_the_daemon() -> None:
    options = bwrap_options()
    assert {"--disable-userns", "--clearenv", "--new-session", "--as-pid-1"} <= set(options)
    assert options[options.index("--cap-drop") + 1] == "ALL"
    assert "--die-with-parent" not in options


def test_session_is_shared_only_if_asked_for() -> None:
    assert "--new-session" not in sandbox_argv(FACTS, COMMAND, new_session=False)


def test_limits_come_before_the_sandbox() -> None:
    assert sandbox_argv(FACTS, COMMAND)[:4] == ("/usr/bin/prlimit", "--core=0:0", "--nofile=512:512", "--")


def test_report_descriptors_are_named_if_given() -> None:
    options = bwrap_options(info_fd=7, status_fd=8)
    assert options[-4:] == ("--info-fd", "7", "--json-status-fd", "8")


def test_host_user_ids_are_distinct_and_not_root() -> None:
    assert vmm_uid(1) != vmm_uid(2)
    # Below 2³¹: some file systems and tools still take the sign bit seriously.
    assert 65536 < vmm_uid(1) < vmm_uid(MAX_HOST_NUMBER) < 1 << 31


@pytest.mark.parametrize(
    ("path", "visible"),
    [
        ("/usr/bin/qemu", True),
        ("/opt/qemu/bin/qemu", False),
        ("usr/bin/qemu", False),
        ("/usr/../opt/qemu", False),
        ("/usrlocal/qemu", False),
    ],
)
def test_only_programs_below_usr_are_visible_inside(path: str, visible: bool) -> None:
    assert is_visible_inside(PurePosixPath(path)) is visible
