"""The published executables over unix-socket vchan, without machines: what a call costs, and how much goes through.

A *call* is one by a client that runs already, as a daemon of another host part would make it: from connecting to
``qrexec-daemon`` to the exit code of ``/bin/true``, which ``qrexec-agent`` runs as a service. Baseline: the same
program started and reaped without us. The agent is an ordinary user's, for which root takes a user namespace: root's
would begin every call with a login shell, whose profile is this machine's and takes many times what we do. Between
qubes, policy is asked as well: by a caller's request over its agent's control channel, answered by
``qrexec-policy-daemon``.

Throughput goes through ``qrexec-client`` from a pipe and to a pipe; its start counts. Baseline: the same two pipes
with ``cat`` in between. The reference C implementation takes 3 to 7 ms a call and moves 60 to 500 MiB/s.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from insula.qrexec.sockets import DaemonClient, Deadline, ServedVchan, handshake
from insula_proto import qrexec
from insula_proto.qrexec import ExecCmdline
from insula_proto.qrexec_channel import AgentControl, CallerEnd
from insula_proto.vchan import Place
from report import Case, percentile, publish

CALLS = 200
QUBE_CALLS = 100
RUNS = 5
STARTS = 9
SIZE_MIB = 256
BAR_CALL_S = 0.004
BAR_MIB_S = 150
BAR_READY_S = 0.3
NOBODY = 65534
PROGRAMS = Path(sys.executable).parent
WORK, VAULT = 42, 43
UUIDS = {"work": "11111111-0000-0000-0000-000000000000", "vault": "22222222-0000-0000-0000-000000000000"}


class World:
    """A folder with two qubes' daemons, one agent, a service, a policy and a qubesd that knows the two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = pwd.getpwuid(os.geteuid() or NOBODY).pw_name
        self.services = folder / "rpc"
        self.services.mkdir()
        self.true = self.services / "bench.True"
        self.true.symlink_to("/bin/true")
        policy = folder / "policy.d"
        policy.mkdir()
        (policy / "30-bench.policy").write_text("bench.True * work vault allow\n")
        self.environment = {
            **os.environ,
            "VCHAN_SOCKET_DIR": str(folder),
            "QREXEC_SERVICE_PATH": str(self.services),
            "QUBES_RPC_CONFIG_PATH": str(folder),
            "INSULA_POLICY_SOCKET": str(folder / "policy.sock"),
            "INSULA_QUBESD_INTERNAL_SOCKET": str(folder / "qubesd.internal.sock"),
        }

    @contextmanager
    def run(self, name: str, *arguments: str, domain: int = 0) -> Iterator[None]:
        command = [str(PROGRAMS / name), *arguments]
        if name == "qrexec-agent" and os.geteuid() == 0:
            command = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", *command]
        environment = {**self.environment, "VCHAN_DOMAIN": str(domain)}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def daemon(self, name: str, domain: int) -> tuple[str, ...]:
        return (
            "qrexec-daemon",
            f"--uuid={UUIDS[name]}",
            f"--socket-dir={self.folder}",
            "-D",
            str(domain),
            name,
            self.user,
        )

    def agent(self) -> tuple[str, ...]:
        return ("qrexec-agent", f"--agent-socket={self.folder}/agent.sock", "--no-fork-server")

    def policy_daemon(self) -> tuple[str, ...]:
        options = {"policy-path": "policy.d", "socket-path": "policy.sock"}
        options |= {"eval-socket-path": "simple.sock", "gui-socket-path": "gui.sock"}
        return ("qrexec-policy-daemon", *(f"--{key}={self.folder}/{value}" for key, value in options.items()))

    def client(self, *arguments: str) -> list[str]:
        return [str(PROGRAMS / "qrexec-client"), f"--socket-dir={self.folder}", "-d", "vault", *arguments]

    @contextmanager
    def qubesd(self) -> Iterator[None]:
        """Tells the policy daemon about the two qubes."""
        domains = {"dom0": "0" * 8, **UUIDS}
        facts = {"tags": [], "type": "AppVM", "power_state": "Running", "template_for_dispvms": False}
        info = {name: {**facts, "uuid": uuid} for name, uuid in domains.items()}
        answer = b"0\0" + json.dumps({"domains": info}).encode()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(4096):
                        pass
                    connection.sendall(answer)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.environment["INSULA_QUBESD_INTERNAL_SOCKET"])
            listener.listen(16)
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# --- calls ---------------------------------------------------------------------------------------------------------


def call_qube(world: World) -> None:
    """The host calls the service of the qube ``vault``."""
    place = Place(str(world.folder), 0)
    daemon = DaemonClient.connect(str(world.folder), "vault")
    command = f"{world.user}:QUBESRPC bench.True dom0".encode()
    domain, port = daemon.ask(ExecCmdline(0, 0, command))
    channel = ServedVchan(place.served_for(domain, port)).accept(Deadline(10))
    finish_call(channel)
    daemon.wait_for_end()
    daemon.close()


def finish_call(channel: socket.socket) -> None:
    """Be the caller up to the exit code."""
    end = CallerEnd()
    handshake(channel, end.hello(), end.receive, Deadline(10))
    channel.sendall(end.stdin_end())
    while end.exit_code is None:
        end.receive(channel.recv(65536))
    assert end.exit_code == 0
    channel.close()


class CallerQube:
    """The agent of ``work``, which asks for a service of ``vault`` and is the caller."""

    def __init__(self, world: World) -> None:
        self._place = Place(str(world.folder), WORK)
        self._control = AgentControl()
        self._served = ServedVchan(self._place.served_for(0, qrexec.CONTROL_PORT))

    def accept(self) -> None:
        self._connection = self._served.accept(Deadline(10))
        handshake(self._connection, self._control.hello(), self._control.receive, Deadline(10))

    def call(self) -> None:
        self._connection.sendall(self._control.trigger_service(b"vault", b"S1", b"bench.True"))
        messages: list[qrexec.Message] = []
        while not messages:
            messages = self._control.receive(self._connection.recv(4096))
        answer = messages[0]
        assert isinstance(answer, qrexec.ServiceConnect), f"not connected: {answer}"
        finish_call(ServedVchan(self._place.served_for(answer.domain, answer.port)).accept(Deadline(10)))

    def close(self) -> None:
        self._connection.close()


def start_program(world: World) -> None:
    """What the agent has to do in any case."""
    os.waitpid(os.posix_spawn(str(world.true), [str(world.true)], world.environment), 0)


# --- throughput ----------------------------------------------------------------------------------------------------


def throughput(world: World, script: str, command: list[str]) -> float:
    """MiB/s of a shell's pipes with a command in them that carries SIZE_MIB."""
    arguments = ["sh", "-c", script, "sh", *command]
    return SIZE_MIB / seconds(lambda: subprocess.run(arguments, env=world.environment, check=True))


SOURCE = f"head -c {SIZE_MIB << 20} /dev/zero"
FROM_PIPE = f'{SOURCE} | "$@"'
TO_PIPE = '"$@" < /dev/null | cat > /dev/null'
BOTH_PIPES = f'{SOURCE} | "$@" | cat > /dev/null'


def interleaved(world: World, *measured: tuple[str, list[str]]) -> list[float]:
    """Medians; they take turns, so that what else the machine does meets all of them."""
    rates = [[throughput(world, *one) for one in measured] for _ in range(RUNS)]
    return [statistics.median(column) for column in zip(*rates, strict=True)]


# --- starts --------------------------------------------------------------------------------------------------------


def start_daemon(world: World) -> float:
    """Until local clients may connect; the agent says HELLO at once."""
    socket_path = world.folder / f"qrexec.{WORK}"
    qube = CallerQube(world)
    begin = time.perf_counter()
    with world.run(*world.daemon("work", WORK)):
        qube.accept()
        wait_for(socket_path)
        elapsed = time.perf_counter() - begin
        qube.close()
    socket_path.unlink(missing_ok=True)
    return elapsed


def start_policy_daemon(world: World) -> float:
    path = world.folder / "policy.sock"
    begin = time.perf_counter()
    with world.run(*world.policy_daemon()):
        wait_for(path)
        return time.perf_counter() - begin


def start_client(world: World) -> float:
    """Until it has connected to a daemon."""
    path = world.folder / "qrexec.vault"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        begin = time.perf_counter()
        with subprocess.Popen(world.client("u:true"), env=world.environment, stderr=subprocess.DEVNULL) as client:
            listener.accept()[0].close()
            elapsed = time.perf_counter() - begin
            client.wait()
    path.unlink()
    return elapsed


def answer_once(world: World) -> float:
    """``qrexec-policy-exec``: from start to answer."""
    command = [str(PROGRAMS / "qrexec-policy-exec"), f"--path={world.folder}/policy.d", "work", "vault", "bench.True"]
    return seconds(
        lambda: subprocess.run(
            command, env=world.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
    )


def starts(world: World) -> list[Case]:
    bare = statistics.median(
        seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)) for _ in range(STARTS)
    )
    found = []
    for name, start in (
        ("qrexec-daemon", start_daemon),
        ("qrexec-client", start_client),
        ("qrexec-policy-daemon", start_policy_daemon),
        ("qrexec-policy-exec, with its answer", answer_once),
    ):
        value = statistics.median(start(world) for _ in range(STARTS))
        bar, ok = f"≤ {BAR_READY_S:g} s", value <= BAR_READY_S
        found.append(Case(f"rpc_vchan: {name} ready", value, "s", bare, "`python -c pass`", bar, ok, STARTS))
    return found


def main() -> None:
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="q-") as folder, ExitStack() as stack:
        world = World(Path(folder))
        stack.enter_context(world.qubesd())
        cases += starts(world)
        stack.enter_context(world.run(*world.agent(), domain=VAULT))
        stack.enter_context(world.run(*world.daemon("vault", VAULT)))
        stack.enter_context(world.run(*world.policy_daemon()))
        qube = CallerQube(world)
        stack.enter_context(world.run(*world.daemon("work", WORK)))
        qube.accept()
        for path in ("qrexec.vault", "qrexec.work", "policy.sock"):
            wait_for(world.folder / path)
        call_qube(world)
        qube.call()
        calls = [(seconds(lambda: call_qube(world)), seconds(lambda: start_program(world))) for _ in range(CALLS)]
        own, bare = [sorted(column) for column in zip(*calls, strict=True)]
        between = [seconds(qube.call) for _ in range(QUBE_CALLS)]
        user = world.user
        there, back, plain = interleaved(
            world,
            (FROM_PIPE, world.client(f"{user}:exec cat > /dev/null")),
            (TO_PIPE, world.client(f"{user}:exec {SOURCE}")),
            (BOTH_PIPES, ["cat"]),
        )
        qube.close()
    what = "starting that program without us"
    p50, bare_p50 = percentile(own, 50), percentile(bare, 50)
    cases += [
        Case(
            "rpc_vchan: a call, p50", p50, "s", bare_p50, what, f"≤ {BAR_CALL_S * 1000:g} ms", p50 <= BAR_CALL_S, CALLS
        ),
        Case("rpc_vchan: a call, p90", percentile(own, 90), "s", percentile(bare, 90), what, "reported", None, CALLS),
        Case(
            "rpc_vchan: a call between qubes, with policy, p50", percentile(between, 50), "s", bare_p50, what,
            "reported", None, QUBE_CALLS,
        ),
    ]  # fmt: skip
    for direction, rate in (("to a qube", there), ("from a qube", back)):
        bar, ok = f"≥ {BAR_MIB_S} MiB/s", rate >= BAR_MIB_S
        cases.append(Case(f"rpc_vchan: {direction}", rate, "MiB/s", plain, "`cat` in its place", bar, ok, RUNS))
    publish("rpc_vchan", cases)


if __name__ == "__main__":
    main()
