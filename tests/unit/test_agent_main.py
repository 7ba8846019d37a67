from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula_agent import commands, main, rehearsal, renewal, seed
from insula_agent import identity as identity_module
from insula_agent.loop import Loop

SRC = Path(__file__).parents[2] / "src"
COSTLY = {"asyncio", "dataclasses", "typing", "subprocess", "logging", "tempfile", "enum", "inspect", "pathlib", "re"}
"""Each of these takes longer to import than all of the agent."""


def test_options_all_given_are_understood() -> None:
    words = ["--device", "fd:3", "--keys", "/k", "--agent-socket", "/s", "--own-user", "--no-identity"]
    options = main.parse_options(words)
    assert options is not None
    assert options.agent_socket == "/s"
    assert (options.device, options.keys_folder, options.own_user, options.with_identity) == ("fd:3", "/k", True, False)


@pytest.mark.parametrize("arguments", [["--device"], ["x"], ["--help"], ["--keys"]])
def test_options_not_understood_are_refused(arguments: list[str]) -> None:
    assert main.parse_options(arguments) is None
    assert main.main(arguments) == 2


def test_missing_device_ends_with_1(tmp_path: Path) -> None:
    options = ["--device", "/nonexistent", "--no-identity", "--agent-socket", str(tmp_path / "agent.sock")]
    assert main.main(options) == 1


def test_import_brings_none_of_the_costly_modules() -> None:
    code = "import sys, insula_agent.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], cwd=SRC, capture_output=True, check=True, timeout=120
    )
    assert not COSTLY & set(done.stdout.decode().split())


@pytest.mark.parametrize("package", ["insula_agent", "insula_proto"])
def test_sources_parse_as_python_3_9(package: str) -> None:
    for path in (SRC / package).rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize("is_abstract", [False, True])
def test_notify_systemd_ready_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool
) -> None:
    name = f"@insula-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        main.notify_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_notify_systemd_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    main.notify_systemd("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    main.notify_systemd("READY=1")


class Recorded(main.Identity):
    """Writes down what happens in which order."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened
        self.gated = False
        self.gate_opens = iter([True])

    def apply(self, all_keys: dict[str, bytes]) -> None:
        self.happened.append(f"apply {all_keys['/name'].decode()}")
        if all_keys["/name"] == b"bad":
            raise OSError("no private volume")

    def finish(self) -> None:
        self.happened.append("finish")

    def complete(self) -> None:
        self.happened.append("complete")

    def set_clock(self, value: bytes) -> None:
        self.happened.append(f"clock {value.decode()}")

    def prepare_windows(self, loop: Loop, on_prepared: Callable[[], None]) -> None:
        self.happened.append("windows prepared")
        del loop
        on_prepared()

    def rehearse_windows(self, on_rehearsed: Callable[[], None]) -> None:
        self.happened.append("windows rehearsed")
        on_rehearsed()

    def want_windows(self, loop: Loop, value: bytes | None) -> None:
        del loop
        if value is not None:
            self.happened.append(f"windows {value.decode()}")

    def is_gated(self) -> bool:
        return self.gated

    def open_gate(self) -> bool:
        self.happened.append("gate")
        return next(self.gate_opens)

    def end_hush(self) -> None:
        self.happened.append("end hush")


@pytest.fixture
def identity(happened: list[str]) -> Recorded:
    return Recorded(happened)


@pytest.fixture
def happened() -> list[str]:
    return []


@pytest.fixture
def agent(
    identity: Recorded, happened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[main.Agent]:
    agent = main.Agent(main.Options(), identity)
    agent._key_socket_path = str(tmp_path / "keys.sock")
    monkeypatch.setattr(agent.commands, "start", lambda: happened.append("commands"))
    monkeypatch.setattr(agent.link, "flush", lambda: happened.append("flush"))
    monkeypatch.setattr(main, "notify_systemd", happened.append)
    yield agent
    if agent.key_socket is not None:
        agent.key_socket.close()


def test_identity_is_applied_once_and_finished_after_the_hello_is_out(agent: main.Agent, happened: list[str]) -> None:
    agent._keys_read({"/name": b"work"})
    agent._keys_read({"/name": b"work"})
    assert happened == ["apply work", "commands", "flush", "finish", "complete", "end hush", "commands"]


def test_identity_that_fails_lets_no_command_in_and_is_tried_again(agent: main.Agent, happened: list[str]) -> None:
    with pytest.raises(OSError, match="private"):
        agent._keys_read({"/name": b"bad"})
    assert happened == ["apply bad"]
    agent._keys_read({"/name": b"work"})
    assert happened == ["apply bad", "apply work", "commands", "flush", "finish", "complete", "end hush"]


def test_clock_is_set_when_the_host_says_the_time_to_a_machine_that_is_somebody(
    agent: main.Agent, happened: list[str]
) -> None:
    agent._key_written("/insula-clock", b"1")
    agent._keys_read({"/name": b"work"})
    happened.clear()
    agent._key_written("/name", b"2")
    agent._key_written("/insula-clock", b"3")
    assert happened == ["clock 3"]


def test_nonsense_for_a_clock_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(renewal, "set_clock", set_to.append)
    for value in (b"", b"soon", b"-1", b"1", b"1795464851000000000"):
        main.Identity().set_clock(value)
    assert set_to == [1795464851000000000]


@pytest.fixture
def seeded(happened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed whose steps are written down instead of done."""
    monkeypatch.setattr(seed, "prepare", lambda: happened.append("prepare"))
    monkeypatch.setattr(seed, "settle", lambda: happened.append("settle"))
    monkeypatch.setattr(seed, "REPORTING_TIME", 0.0)
    monkeypatch.setattr(identity_module, "rehearse", lambda: happened.append("rehearse"))


@pytest.mark.usefixtures("seeded")
def test_seed_lets_the_system_boot_first_and_says_hello_then(
    agent: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    booted = iter([False, False, True])
    monkeypatch.setattr(seed, "is_booted", lambda: next(booted))
    monkeypatch.setattr(main, "BOOT_STEP", 0.0)
    agent._keys_read({"/insula-seed": b"1"})
    assert happened == ["prepare", "READY=1"]
    while agent.loop._timers:
        agent.loop._run_timers()
    assert happened == ["prepare", "READY=1", "windows prepared", "rehearse", "settle", "commands"]


@pytest.mark.usefixtures("seeded")
def test_fork_that_is_nobodys_rehearses_its_start_and_a_window_and_says_hello_then(
    agent: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "run", lambda keys, act: happened.append("rehearsed"))
    monkeypatch.setattr(seed, "mount_once", lambda: happened.append("mounts"))
    agent._keys_read({"/insula-seed": b"1", rehearsal.KEY: rehearsal.WITH_WINDOW})
    assert happened == ["rehearsed", "mounts", "windows rehearsed", "commands"]
    happened.clear()
    agent._keys_read({"/insula-seed": b"1", rehearsal.KEY: b"start"})
    assert happened == ["rehearsed", "mounts", "commands"]


@pytest.mark.usefixtures("seeded")
def test_windows_are_wanted_by_the_key_at_once_and_later(agent: main.Agent, happened: list[str]) -> None:
    agent._keys_read({"/name": b"work"})
    assert not [what for what in happened if what.startswith("windows")]
    agent._key_written("/qubes-gui-enabled", b"1")
    assert happened[-1] == "windows 1"
    agent._keys_read({"/name": b"work", "/qubes-gui-enabled": b"1"})
    assert happened.count("windows 1") == 2


@pytest.mark.usefixtures("seeded")
def test_fork_of_a_seed_is_somebody_without_a_second_ready(
    agent: main.Agent, identity: Recorded, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed, "is_booted", lambda: True)
    agent._keys_read({"/insula-seed": b"1"})
    del happened[:]
    identity.gated = True
    agent._keys_read({"/name": b"work"})
    agent._ready(3)
    assert happened == ["apply work", "commands", "flush", "finish"]


@pytest.mark.usefixtures("seeded")
def test_requests_of_programs_wait_in_a_seed_and_are_made_as_its_fork(
    agent: main.Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-67: nobody's programs ask for nothing."""
    monkeypatch.setattr(seed, "is_booted", lambda: True)
    allowed: list[str] = []
    monkeypatch.setattr(agent.commands.requests, "allow", lambda: allowed.append("allow"))
    agent._keys_read({"/insula-seed": b"1"})
    assert allowed == []
    agent._keys_read({"/name": b"work"})
    assert allowed == ["allow"]


@pytest.mark.usefixtures("seeded")
def test_seed_whose_host_came_back_waits_once(
    agent: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first connection waits for must not say HELLO on the second one, which may be somebody's."""
    monkeypatch.setattr(seed, "is_booted", lambda: False)
    monkeypatch.setattr(main, "BOOT_STEP", 0.0)
    agent._keys_read({"/insula-seed": b"1"})
    agent.link.epoch += 1
    agent.loop._run_timers()
    assert agent.loop._run_timers() == -1, "it waits for nothing more"
    assert "commands" not in happened


@pytest.mark.usefixtures("seeded")
def test_qube_that_has_an_identity_is_no_seed_any_more(agent: main.Agent) -> None:
    agent._keys_read({"/name": b"work"})
    with pytest.raises(main.SeedRefused):
        agent._keys_read({"/insula-seed": b"1"})


@pytest.fixture
def fork(agent: main.Agent, identity: Recorded, happened: list[str], monkeypatch: pytest.MonkeyPatch) -> main.Agent:
    """A fork that was told who it is and waits at its gate; each look at it follows at once."""
    monkeypatch.setattr(main, "GATE_STEP", 0.0)
    # Nothing of this is over before a test says so, however slow the machine that it runs on.
    for name, seconds in (("GATE_QUIET", 30.0), ("GATE_WAIT", 3600.0), ("GATE_LIMIT", 3600.0)):
        monkeypatch.setattr(main, name, seconds)
    identity.gated = True
    agent._keys_read({"/name": b"work"})
    del happened[:]
    return agent


def ended(agent: main.Agent, *, since: float = 60.0) -> None:
    """A command has ended a while ago."""
    agent.commands.ended_at = time.monotonic() - since


def test_gate_stays_shut_until_the_first_command_has_ended(fork: main.Agent, happened: list[str]) -> None:
    fork.loop._run_timers()
    fork.loop._run_timers()
    assert happened == []
    ended(fork)
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]
    assert fork.loop._run_timers() > 0, "the system boots on while nobody wants anything"
    assert happened == ["complete", "gate"]


def test_gate_stays_shut_a_moment_longer_after_each_command(fork: main.Agent, happened: list[str]) -> None:
    ended(fork, since=0.0)
    fork.loop._run_timers()
    assert happened == []
    ended(fork, since=main.GATE_QUIET)
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]


def test_gate_opens_at_last_though_commands_keep_coming(
    fork: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "GATE_LIMIT", 0.0)
    ended(fork, since=0.0)
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]


def test_gate_opens_at_once_for_a_command_that_waits_for_the_system(
    fork: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.Commands, "is_busy", True)
    fork.commands.is_system_wanted = True
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]


def test_system_takes_its_turns_again_after_a_while(
    fork: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "HUSH_TIME", 0.0)
    ended(fork)
    fork.loop._run_timers()
    fork.loop._run_timers()
    assert happened == ["complete", "gate", "end hush"]
    assert fork.loop._run_timers() == -1, "the gate is not looked at again"


def test_hush_is_ended_only_where_there_was_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(seed, "hush", lambda *, is_wanted: wanted.append(is_wanted))
    for is_booted in (False, True):
        monkeypatch.setattr(seed, "is_booted", lambda is_booted=is_booted: is_booted)
        main.Identity().end_hush()
    assert wanted == [False]


def test_gate_opens_by_itself_where_no_command_comes(
    fork: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "GATE_WAIT", 0.0)
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]


def test_gate_waits_longer_for_a_command_that_runs_but_not_for_ever(
    fork: main.Agent, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "GATE_WAIT", 0.0)
    monkeypatch.setattr(commands.Commands, "is_busy", True)
    fork.loop._run_timers()
    assert happened == []
    monkeypatch.setattr(main, "GATE_LIMIT", 0.0)
    fork.loop._run_timers()
    assert happened == ["complete", "gate"]


def test_gate_where_nobody_waits_yet_is_tried_again(
    fork: main.Agent, identity: Recorded, happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "HUSH_TIME", 0.0)
    identity.gate_opens = iter([False, False, True])
    ended(fork)
    while fork.loop._run_timers() != -1:
        pass
    assert happened == ["complete", "gate", "gate", "gate", "end hush"]


class _ReadKeys(ast.NodeVisitor):
    """Names of keys in a program's text; f-strings count up to their first value."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value.startswith(("/qubes-", "/insula-", "/net-config/")):
            self.found.add(node.value)


@pytest.mark.parametrize("module", ["network", "interfaces"])
def test_network_hears_of_every_key_that_it_reads(module: str) -> None:
    reader = _ReadKeys()
    reader.visit(ast.parse((SRC / "insula_agent/net" / f"{module}.py").read_text()))
    assert reader.found
    assert [key for key in reader.found if not key.startswith(main.NETWORK_PREFIXES)] == []
