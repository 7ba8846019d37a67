"""A new installation with real guests: what a person finds there who has set up nothing, and the commands that the
README tells people to type, in its order."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from insula.daemon.autostart import is_running
from insula.rpc.call_log import LogReader
from insula.testing.daemon import DaemonProcess
from insula.testing.desktop import Desktop, desktop
from insula.testing.guest import build_template, create_app_qube, install, run
from insula.testing.prompt_program import PromptWindow

pytestmark = [pytest.mark.vm, pytest.mark.desktop]

README = Path(__file__).parents[2] / "README.md"
PROGRAM = ".venv/bin/insula"
COMMAND_TIMEOUT_S = 240.0
"""A start under software emulation on a busy machine is the longest."""
POLL_S = 0.1
DAEMON_END_TIMEOUT_S = 120
"""From a closed socket to the end of the process."""


def second_shell_block() -> list[list[str]]:
    """Commands of the block after "Then:", as lists of words."""
    block = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)[1]
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def screen() -> Iterator[Desktop]:
    with desktop(1024, 768) as shown:
        yield shown


@pytest.fixture(scope="module")
def installation(screen: Desktop) -> Iterator[DaemonProcess]:
    """What ``make run`` leaves, as far as it is needed here: the template, a net qube and the qube ``personal``."""
    # The daemon is one that was started on this screen.
    daemon = DaemonProcess(None, **{**screen.environment, "INSULA_PROMPT": "on"})

    async def begin() -> None:
        built = await build_template()
        await daemon.__aenter__()
        await install(daemon.client, built)
        await create_app_qube(daemon.client, "personal", "yellow")
        await create_app_qube(daemon.client, "sys-net")
        for prop, value in (("provides_network", "True"), ("netvm", ""), ("uplink", "host")):
            await daemon.client.call("admin.vm.property.Set", "sys-net", arg=prop, payload=value.encode())

    asyncio.run(begin())
    failed = True
    try:
        yield daemon
        failed = False
    finally:
        error = AssertionError("the run was broken off") if failed else None
        asyncio.run(daemon.__aexit__(type(error) if error else None, error, None))


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


async def test_first_copy_is_asked_about_and_a_disposable_is_offered(
    installation: DaemonProcess, screen: Desktop
) -> None:
    """Nobody started a prompt, nobody wrote a rule, nobody made a disposable template."""
    await installation.client.start("personal")
    copying = asyncio.create_task(run(installation, "personal", "echo dear > letter.txt && qvm-copy letter.txt"))
    prompt = PromptWindow(screen)
    # The first of @dispvm:default-dvm, debian-12, default-dvm, sys-net.
    window = await asyncio.to_thread(prompt.choose, 0, 4)
    await asyncio.to_thread(screen.click, *prompt.allow_button(window))
    result = await copying
    assert result.code == 0, result.err
    # It is written down, and the disposable goes, after the caller has its answer.
    records: list[Mapping[str, object]] = []
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        while not records or any(row.klass == "DispVM" for row in await installation.client.list_qubes()):
            log = LogReader(installation.paths.calls_log).read()
            records = [item for item in log if item["service"] == "qubes.Filecopy"]
            await asyncio.sleep(POLL_S)
    [record] = records
    assert (record["decision"], record["asked"]) == ("allowed", True)
    assert str(record["server"]).startswith("disp")


async def test_readme_commands_work_one_after_the_other(installation: DaemonProcess, screen: Desktop) -> None:
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
    assert not screen.windows("Insula")
