"""A qube that floods the host disturbs no other: commands in them and the Admin API keep their latency (MC-13, MC-15).

Root in a qube owns the qube's end of the channel. Here it stops the agent and speaks in its place, through the agent's
own protocol code, and says too much, nonsense, or half of it.

Three qubes. Commands run in ``bystander``, while either ``flooder`` or ``spinner`` is unpaused, by turns many times in
the same run. The spinner only uses its virtual CPU; so what is compared is a busy qube with a busy qube that also
floods, and a machine that is busy otherwise slows both down.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, create_app_qube, run, sh

from .conftest import discard

BYSTANDER, SPINNER = "test-bystander", "test-spinner"
TURNS = 4
COMMANDS_A_TURN = 3
FACTOR = 3.0
"""How much longer the median may take beside a flood than beside a spinner. The flood adds one more thing that wants a
core, the flooder's session process (and now and then QEMU's own thread): on two cores that are wanted by three already
(the spinner's virtual CPU, the bystander's, the host's part of the command) everybody's share falls to 3/4, on one core
to 1/2. The rest is for chance. A host that served the flood first would need as long as the flood is: for ever."""
GRACE_S = 0.05
"""Added to the bound: some calls take a millisecond, and then a single switch of tasks is a factor."""
STALL_S = 5.0
"""No single call takes that much longer than the slowest one beside the spinner."""
PATIENCE_S = 180.0

PROGRAM = r'''
import os, random, subprocess, sys
sys.path.insert(0, "/usr/lib/insula")
from insula_proto import mux, mux_events, qrexec_channel, qubesdb

KEYS, CONTROL = 1, 3
port = -1


def take_port():
    """Stop the agent and be it."""
    global port
    subprocess.run(["systemctl", "stop", "insula-agent"], check=True)
    port = os.open("/dev/virtio-ports/insula.rpc", os.O_RDWR)


def write_all(data):
    while data:
        data = data[os.write(port, data[:32768]):]


class Agent:
    """As much of one as the host needs to see."""

    def __init__(self):
        self.mux = mux.Mux(mux.GUEST)
        self.mux.start()
        self.flush()
        while not self.mux.in_sync:
            self.read()
        assert self.mux.open(qubesdb.PORT) == KEYS
        self.mux.send(KEYS, qubesdb.KeyClient().read_all())
        assert self.mux.open(512) == CONTROL
        self.control = qrexec_channel.AgentControl()
        self.mux.send(CONTROL, self.control.hello())
        self.flush()
        got = b""
        while not got:
            data = [event for event in self.read() if isinstance(event, mux_events.DataReceived)]
            got = b"".join(event.data for event in data if event.stream == CONTROL)
        self.control.receive(got)

    def read(self):
        events = self.mux.receive(os.read(port, 65536))
        for event in events:
            if isinstance(event, mux_events.DataReceived):
                self.mux.consumed(event.stream, len(event.data))
        self.flush()
        return events

    def flush(self):
        while data := b"".join(self.mux.data_to_send()):
            self.mux.sent(os.write(port, data[:32768]))

    def send_for_ever(self, stream, message):
        """As fast as the host grants it."""
        many = message * (4096 // len(message))
        while True:
            if self.mux.writable(stream) < len(many):
                self.read()
            else:
                self.mux.send(stream, many)
                self.flush()


def garbage():
    """Frames that make no sense, again whenever the host tries anew."""
    take_port()
    while True:
        write_all(os.urandom(32768))


def half():
    """A proper beginning, then the first bytes of a message on each stream, and silence."""
    take_port()
    agent = Agent()
    agent.mux.send(KEYS, qubesdb.encode(qubesdb.KeyMessage(qubesdb.WRITE, "/features-request/x", b"x" * 100))[:50])
    agent.mux.send(CONTROL, agent.control.trigger_service(b"dom0", b"SOCKET1", b"test.Flood")[:6])
    agent.flush()
    while True:
        pass


def requests():
    take_port()
    agent = Agent()
    agent.send_for_ever(CONTROL, agent.control.trigger_service(b"dom0", b"SOCKET1", b"test.Flood"))


def keys():
    take_port()
    agent = Agent()
    message = qubesdb.encode(qubesdb.KeyMessage(qubesdb.WRITE, "/features-request/flood", b"x" * 1000))
    agent.send_for_ever(KEYS, message)


def handshakes():
    """Asks for a new handshake without end."""
    take_port()
    agent = mux.Mux(mux.GUEST)
    agent.start()
    hello = b"".join(agent.data_to_send())
    os.set_blocking(port, False)
    while True:
        try:
            os.write(port, hello * 256)
            os.read(port, 65536)
        except BlockingIOError:
            pass


def console():
    with open("/dev/ttyS0", "wb", buffering=0) as stream:
        while True:
            stream.write(b"\x1b[2J flood " * 100 + b"\r\n")


def spin():
    while True:
        pass


globals()[sys.argv[1]]()
'''

ENDS = {"test-half": "agent lost: keys: a message was begun and not finished"}
"""What the daemon's log says of a flooder in the end."""
FLOODS = ("garbage", "half", "requests", "keys", "handshakes", "console")


@pytest.fixture(scope="module")
def others(daemon: DaemonProcess) -> Iterator[None]:
    """The bystander, running, and the spinner, paused."""
    asyncio.run(start_others(daemon))
    yield
    for name in (BYSTANDER, SPINNER):
        asyncio.run(discard(daemon, name))


async def start_others(daemon: DaemonProcess) -> None:
    await daemon.client.build_seed(TEMPLATE)
    for name in (BYSTANDER, SPINNER):
        await start(daemon, name)
    await begin(daemon, SPINNER, "spin")
    await daemon.client.pause(SPINNER)


@pytest.fixture(params=FLOODS)
async def flooder(request: pytest.FixtureRequest, daemon: DaemonProcess, others: None) -> AsyncIterator[str]:
    """A qube that floods, paused; its name ends with how."""
    name = f"test-{request.param}"
    await start(daemon, name)
    await begin(daemon, name, request.param)
    await until(lambda: is_flooding(daemon, name))
    await daemon.client.pause(name)
    yield name
    await discard(daemon, name)


async def start(daemon: DaemonProcess, name: str) -> None:
    await create_app_qube(daemon.client, name)
    await daemon.client.set_property("start_mode", "warm", name)
    await daemon.client.start(name)


async def begin(daemon: DaemonProcess, name: str, what: str) -> None:
    """Have the program run there, not as a part of the agent, which it ends."""
    command = f"cat > /run/flood.py; systemd-run --quiet --no-block python3 /run/flood.py {what}"
    done = await run(daemon, name, command, user="root", stdin=PROGRAM.encode())
    assert done.code == 0, done.err


def is_flooding(daemon: DaemonProcess, name: str) -> bool:
    """Whether the host has noticed: its agent is another one, or the console has grown."""
    console = daemon.paths.qube(name) / "console.log"
    return f"{name}: agent lost" in daemon.log() or (console.exists() and b" flood " in console.read_bytes())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.1)


async def seconds(call: Awaitable[object]) -> float:
    before = time.perf_counter()
    await call
    return time.perf_counter() - before


Samples = dict[str, list[float]]
"""What was called → seconds of each call."""


async def measure_beside(daemon: DaemonProcess, busy: str, samples: Samples) -> None:
    """One turn of ``busy``."""
    await daemon.client.unpause(busy)
    for _ in range(COMMANDS_A_TURN):
        samples["command"].append(await seconds(sh(daemon, BYSTANDER, ":", user="root")))
        samples["admin.vm.List"].append(await seconds(daemon.client.list_qubes()))
    await daemon.client.pause(busy)


def complaints(calm: Samples, flooded: Samples) -> list[str]:
    """Which calls a flood made slower than it may. Pure."""
    found = []
    for what, quick in calm.items():
        slow = flooded[what]
        usual, bound = statistics.median(slow), FACTOR * statistics.median(quick) + GRACE_S
        if usual > bound:
            found.append(f"{what} usually took {usual:.3f} s, more than {bound:.3f} s")
        worst, bound = max(slow), max(quick) + STALL_S
        if worst > bound:
            found.append(f"{what} took {worst:.3f} s once, more than {bound:.3f} s")
    return found


async def test_flood_leaves_commands_in_other_qubes_and_the_admin_api_their_latency(
    daemon: DaemonProcess, flooder: str
) -> None:
    calm: Samples = {"command": [], "admin.vm.List": []}
    flooded: Samples = {"command": [], "admin.vm.List": []}
    for _ in range(TURNS):
        await measure_beside(daemon, SPINNER, calm)
        await measure_beside(daemon, flooder, flooded)
    assert complaints(calm, flooded) == []
    await until(lambda: f"{flooder}: {ENDS.get(flooder, '')}" in daemon.log())
    # The daemon still has its hands on it.
    assert (await daemon.client.current_state(flooder)).power_state == "Paused"
