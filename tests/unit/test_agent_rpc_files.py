"""The service files the agent brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula_proto import vmexec
from insula_proto.services import parse_settings

FOLDER = Path(__file__).parents[2] / "src" / "insula_agent" / "rpc"
ECHO = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]))"
SERVICES = ("qubes.VMExec", "qubes.VMShell", "qubes.VMRootExec", "qubes.VMRootShell")


def execute(name: str, *arguments: bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([FOLDER / name, *arguments], input=stdin, capture_output=True, check=False, timeout=30)


@pytest.mark.parametrize("name", SERVICES)
def test_service_file_is_executable(name: str) -> None:
    assert (FOLDER / name).stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("name", ["qubes.VMRootExec", "qubes.VMRootShell"])
def test_root_service_is_forced_to_root(name: str) -> None:
    assert parse_settings((FOLDER / "config" / name).read_text()).force_user == "root"


def test_no_other_service_has_settings() -> None:
    assert {path.name for path in (FOLDER / "config").iterdir()} == {"qubes.VMRootExec", "qubes.VMRootShell"}


@pytest.mark.parametrize(
    "argument", [b"-x", b"--help", b"$HOME", b"`id`", b"$(id)", b"*", b"a b", b"'", b'"', b"\\n", b"\n\n", b"", b";"]
)
def test_vmexec_argument_reaches_program_unchanged(argument: bytes) -> None:
    """MC-17: the handler echoes its vector."""
    encoded = vmexec.encode([sys.executable.encode(), b"-S", b"-E", b"-c", ECHO.encode(), argument, b"end"])
    done = execute("qubes.VMExec", encoded)
    assert done.stdout == argument + b"\0end"
    assert done.returncode == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\0", b"\1")), max_size=4))
def test_vmexec_any_arguments_reach_program_unchanged(arguments: list[bytes]) -> None:
    """MC-17."""
    encoded = vmexec.encode([b"printf", b"%s|", *arguments])
    assert execute("qubes.VMExec", encoded).stdout == b"".join(arg + b"|" for arg in arguments or [b""])


@pytest.mark.parametrize("bad", [b"", b"a b", b"-", b"true-", b"true+-2f", b"true+-00", b"true+$HOME", b"+", b"+x"])
def test_vmexec_not_encoded_is_125(bad: bytes) -> None:
    """MC-16."""
    assert execute("qubes.VMExec", bad).returncode == 125


def test_vmexec_missing_program_is_127() -> None:
    assert execute("qubes.VMExec", b"no.such.program.here").returncode == 127


def test_vmexec_exit_code_is_passed_on() -> None:
    assert execute("qubes.VMExec", vmexec.encode([b"sh", b"-c", b"exit 7"])).returncode == 7


@pytest.mark.parametrize("name", ["qubes.VMShell", "qubes.VMRootShell"])
def test_vmshell_text_after_a_command_is_its_input(name: str) -> None:
    done = execute(name, stdin=b"head -c 5; exit 3\nhello")
    assert (done.stdout, done.returncode) == (b"hello", 3)


def test_vmrootexec_is_vmexec() -> None:
    assert execute("qubes.VMRootExec", b"echo+a-20b").stdout == b"a b\n"
