"""The commands that the README tells people to type work, in its order, on a new installation with a real guest."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.daemon.autostart import is_running
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install

README = Path(__file__).parents[2] / "README.md"
PROGRAM = ".venv/bin/insula"
COMMAND_TIMEOUT_S = 240.0
"""A start under software emulation on a busy machine is the longest."""
DAEMON_END_TIMEOUT_S = 15
"""From a closed socket to the end of the process."""


def second_shell_block() -> list[list[str]]:
    """Commands of the block after "Then:", as lists of words."""
    block = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)[1]
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
async def installation() -> AsyncIterator[DaemonProcess]:
    """What ``make run`` leaves, as far as the commands need it: the template, a net qube and the qube ``personal``."""
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await create_app_qube(daemon.client, "personal", "yellow")
        await create_app_qube(daemon.client, "sys-net")
        for prop, value in (("provides_network", "True"), ("netvm", ""), ("uplink", "host")):
            await daemon.client.call("admin.vm.property.Set", "sys-net", arg=prop, payload=value.encode())
        yield daemon


async def insula(daemon: DaemonProcess, arguments: list[str]) -> tuple[int | None, str]:
    """Exit code and everything it printed."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=daemon.environment,
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode()


async def test_readme_commands_work_one_after_the_other(installation: DaemonProcess) -> None:
    commands = second_shell_block()
    printed: dict[str, str] = {}
    for program, *arguments in commands:
        assert program == PROGRAM
        name = " ".join(arguments[: 1 + (arguments[1:2] == ["--dispvm"])])
        code, output = await insula(installation, arguments)
        printed[name] = output
        if arguments[0] == "doctor" and code == 1:
            # Something is missing on this machine; then it must say what.
            assert re.search(r"^\S.* fail  +\S", output, re.MULTILINE), output
        else:
            assert code == 0, f"{shlex.join(arguments)}: {output}"
    assert list(printed) == [
        "ls", "run", "create", "start", "run --dispvm", "net", "update", "calls", "top", "doctor", "down",
    ]  # fmt: skip
    assert re.search(r"^personal +AppVM ", printed["ls"], re.MULTILINE)
    assert "Linux personal " in printed["run"]
    assert "bank started" in printed["start"]
    assert "uid=1000(user)" in printed["run --dispvm"]
    assert "sys-net" in printed["net"]
    assert re.search(r"^debian-12 (has nothing to update|updated in )", printed["update"], re.MULTILINE)
    assert "qubes.UpdatesProxy" in printed["calls"]
    assert re.search(r"^bank ", printed["top"], re.MULTILINE)
    assert not is_running(installation.paths)
    assert installation.process is not None
    await asyncio.to_thread(installation.process.wait, DAEMON_END_TIMEOUT_S)
