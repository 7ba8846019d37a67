"""Services that programs of a real guest ask other qubes for: the guest's half; who may call whom is another matter."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import RUN_TIMEOUT_S, create_app_qube, run, sh

from .conftest import discard

_numbers = itertools.count(1)
RULES = """\
test.Echo * @anyvm @anyvm allow
test.Fail * @anyvm @anyvm allow
test.Greet * @anyvm @anyvm allow
test.Tcp * @anyvm @anyvm allow
test.Sink * @anyvm @anyvm allow
test.Absent * @anyvm @anyvm allow
test.Refused * @anyvm @anyvm deny notify=no
"""
FOLDER = "/usr/local/etc/qubes-rpc"
SERVICES = {
    "test.Echo": 'echo "$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME [$1] $(id -un)"; cat',
    "test.Fail": "echo why >&2; exit 42",
    "test.Greet": 'echo "hello $QREXEC_REMOTE_DOMAIN"',
    "test.Sink": "exec wc -c",
}
BULK_MIB = 32
SERVER = b"""\
import socket
connection, _ = socket.create_server(("127.0.0.1", 8123)).accept()
print(connection.recv(100))
connection.send(b"hi")
"""


@dataclass(frozen=True)
class Pair:
    caller: str
    target: str


@pytest.fixture(scope="module")
def pair(daemon: DaemonProcess) -> Iterator[Pair]:
    """Two started qubes; the second has services."""
    number = next(_numbers)
    made = Pair(f"test-caller-{number}", f"test-target-{number}")
    policy = daemon.paths.policy / "10-test-service-calls.policy"

    async def make() -> None:
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(RULES)
        for name in (made.caller, made.target):
            await create_app_qube(daemon.client, name)
            await daemon.client.start(name)
        await sh(daemon, made.target, f"mkdir -p {FOLDER}; ln -s /dev/tcp/127.0.0.1 {FOLDER}/test.Tcp", user="root")
        for name, text in SERVICES.items():
            install = f"cat > {FOLDER}/{name}; chmod 755 {FOLDER}/{name}"
            await run(daemon, made.target, install, user="root", stdin=f"#!/bin/sh\n{text}\n".encode())

    asyncio.run(make())
    yield made
    policy.unlink()
    for name in (made.caller, made.target):
        asyncio.run(discard(daemon, name))


async def test_program_of_a_user_calls_a_service(daemon: DaemonProcess, pair: Pair) -> None:
    result = await run(daemon, pair.caller, f"echo question | qrexec-client-vm {pair.target} test.Echo+argument")
    assert result.text.split("\n") == [f"{pair.caller} test.Echo+argument [argument] user", "question"]
    assert result.code == 0


async def test_exit_code_and_error_output_come_back(daemon: DaemonProcess, pair: Pair) -> None:
    result = await run(daemon, pair.caller, f"qrexec-client-vm {pair.target} test.Fail </dev/null")
    assert (result.code, result.err) == (42, b"why\n")


async def test_absent_and_refused_have_their_codes(daemon: DaemonProcess, pair: Pair) -> None:
    assert (await run(daemon, pair.caller, f"qrexec-client-vm {pair.target} test.Absent </dev/null")).code == 127
    refused = await run(daemon, pair.caller, f"qrexec-client-vm {pair.target} test.Refused </dev/null")
    assert (refused.code, refused.err) == (126, b"Request refused\n")


async def test_published_path_and_a_local_program(daemon: DaemonProcess, pair: Pair) -> None:
    program = "/bin/sh -c 'cat >&$SAVED_FD_1; exit 3'"
    result = await run(daemon, pair.caller, f"/usr/lib/qubes/qrexec-client-vm {pair.target} test.Greet {program}")
    assert (result.code, result.text) == (3, f"hello {pair.caller}")


async def test_tcp_service_reaches_the_port_of_the_target(daemon: DaemonProcess, pair: Pair) -> None:
    listening = asyncio.ensure_future(run(daemon, pair.target, "python3 -", stdin=SERVER))
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while await _is_refused(daemon, pair):
            await asyncio.sleep(0.2)
    assert (await listening).out == f"b'test.Tcp+8123 {pair.caller}\\x00hello\\n'\n".encode()


async def _is_refused(daemon: DaemonProcess, pair: Pair) -> bool:
    result = await run(daemon, pair.caller, f"echo hello | qrexec-client-vm {pair.target} test.Tcp+8123")
    assert result.code == 125 or result.out == b"hi"
    return result.code == 125


async def test_bulk_from_qube_to_qube_arrives_whole(daemon: DaemonProcess, pair: Pair) -> None:
    send = f"head -c {BULK_MIB}M /dev/zero | qrexec-client-vm {pair.target} test.Sink"
    assert (await run(daemon, pair.caller, send)).text == str(BULK_MIB << 20)


async def test_many_calls_at_once_all_answer(daemon: DaemonProcess, pair: Pair) -> None:
    command = f"for n in 1 2 3 4 5 6 7 8; do echo $n | qrexec-client-vm {pair.target} test.Echo & done; wait"
    result = await run(daemon, pair.caller, command)
    assert sorted(line for line in result.text.split("\n") if line.isdigit()) == list("12345678")


async def test_fork_of_a_seed_asks_as_itself(daemon: DaemonProcess, pair: Pair) -> None:
    """MC-67: its socket was made in the seed, when it was nobody."""
    name = f"test-fork-{next(_numbers)}"
    await create_app_qube(daemon.client, name)
    await daemon.client.set_property("start_mode", "warm", name)
    await daemon.client.start(name)
    result = await run(daemon, name, f"echo question | qrexec-client-vm {pair.target} test.Echo")
    assert result.text.split("\n") == [f"{name} test.Echo+ [] user", "question"]
    await discard(daemon, name)
