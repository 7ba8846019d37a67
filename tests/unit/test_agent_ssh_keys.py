"""SSH host keys: whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula_agent.programs import ProgramFailed
from insula_agent.ssh_keys import apply, plan

ME, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("here", "kept", "is_keeper", "expected"),
    [
        (ME, "", True, []),
        (ME, OTHER, False, []),
        ("", ME, True, ["restore"]),
        (OTHER, ME, True, ["restore"]),
        ("", "", True, ["make", "keep"]),
        (OTHER, OTHER, True, ["make", "keep"]),
        ("", ME, False, ["make"]),
        (OTHER, "", False, ["make"]),
    ],
)
def test_keys_of_another_machine_are_replaced(here: str, kept: str, expected: list[str], *, is_keeper: bool) -> None:
    assert plan(ME, here, kept, is_keeper=is_keeper) == expected


class Machine:
    def __init__(self, folder: Path) -> None:
        self.ssh, self.kept = folder / "ssh", folder / "kept"
        self.ssh.mkdir()
        (self.ssh / "sshd_config").write_text("mine")
        (self.ssh / "ssh_host_rsa_key").write_text("the template's")
        self.made = 0

    def start(self, machine_id: str = ME, *, is_keeper: bool = True) -> str:
        """What a start leaves as the host key."""
        self.made += 1
        key = self.ssh / "ssh_host_ed25519_key"
        make = ["sh", "-c", f"umask 077; echo key {self.made} > {key}"]
        apply(machine_id, str(self.ssh), str(self.kept), make, is_keeper=is_keeper)
        assert (self.ssh / "sshd_config").read_text() == "mine"
        assert not (self.ssh / "ssh_host_rsa_key").exists()
        assert key.stat().st_mode & 0o777 == 0o600
        return key.read_text().strip()

    def lose_root(self) -> None:
        (self.ssh / "ssh_host_ed25519_key").unlink()
        (self.ssh / "insula-machine-id").unlink()
        (self.ssh / "ssh_host_rsa_key").write_text("the template's")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_qube_keeps_its_keys_from_start_to_start(machine: Machine) -> None:
    assert machine.start() == "key 1"
    machine.lose_root()
    assert machine.start() == "key 1"


def test_clone_of_a_qube_has_keys_of_its_own(machine: Machine) -> None:
    machine.start()
    machine.lose_root()
    assert machine.start(OTHER) == "key 2"
    machine.lose_root()
    assert machine.start(OTHER) == "key 2"


def test_qube_that_keeps_nothing_has_new_keys_at_each_start(machine: Machine) -> None:
    assert machine.start(is_keeper=False) == "key 1"
    machine.lose_root()
    assert machine.start(is_keeper=False) == "key 2"
    assert not machine.kept.exists()


def test_restart_within_a_boot_changes_nothing(machine: Machine) -> None:
    assert [machine.start(), machine.start()] == ["key 1", "key 1"]


def test_failing_generator_is_tried_again_at_the_next_start(machine: Machine) -> None:
    with pytest.raises(ProgramFailed):
        apply(ME, str(machine.ssh), str(machine.kept), ["false"], is_keeper=True)
    assert machine.start() == "key 1"
