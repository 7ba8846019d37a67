"""Programs of a qube ask for services of other qubes: a real agent and real programs, the host played by the test."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_host import PATIENCE_S, Agent, Host, agent_and_host

from insula_agent import requests
from insula_agent.caller import LARGE
from insula_agent.link import ENOUGH_ROOM
from insula_agent.loop import Loop
from insula_agent.relay import CHANNEL_SIZE
from insula_agent.requests import Requests
from insula_proto import limits, qrexec
from insula_proto.qrexec import (
    ConnectionTerminated,
    Message,
    ServiceRefused,
    Stdin,
    TriggerService,
    encode,
)
from insula_proto.qrexec_channel import ServiceEnd, ServiceRequested

PORT = 600
TARGET_DOMAIN = 9
REQUEST = encode(TriggerService(b"", b"vault", b"SOCKET", b"a.B+c"))


@pytest.fixture
def qube(tmp_path: Path) -> Iterator[tuple[Agent, Host]]:
    with agent_and_host(tmp_path) as (agent, host):
        host.begin()
        host.wait_ready()
        yield agent, host


def asked(host: Host, count: int = 1) -> list[ServiceRequested]:
    """Wait for requests."""

    def found() -> list[ServiceRequested]:
        return [message for message in host.messages if isinstance(message, ServiceRequested)]

    host.wait_for(lambda: len(found()) >= count)
    return found()


def grant(host: Host, request: ServiceRequested, port: int = PORT) -> int:
    stream = host.open(port)
    host.say(host.control.connect_service(TARGET_DOMAIN, port, request.ident))
    return stream


def cpu_ticks(agent: Agent) -> int:
    """Time the agent has used, in hundredths of a second."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class Service:
    """The service's end of a call, written by the test."""

    def __init__(self, host: Host, stream: int) -> None:
        self._host = host
        self.stream = stream
        self.end = ServiceEnd()
        self._seen = 0
        self.messages: list[Message] = []
        host.send(stream, self.end.hello())
        host.wait_for(lambda: self.look() or self.end.version is not None)

    def look(self) -> None:
        data = self._host.received.get(self.stream, b"")
        self.messages += self.end.receive(data[self._seen :])
        self._seen = len(data)

    @property
    def stdin(self) -> bytes:
        self.look()
        return b"".join([message.data for message in self.messages if isinstance(message, Stdin)])

    @property
    def has_all(self) -> bool:
        self.look()
        return Stdin(b"") in self.messages

    def finish(self, code: int) -> None:
        self._host.send(self.stream, self.end.finish(code))
        self._host.mux.finish(self.stream)


def test_program_granted_reads_and_writes_the_service(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B+c")
    (request,) = asked(host)
    assert (request.claimed_source, request.target, request.service) == ("", "vault", "a.B+c")
    service = Service(host, grant(host, request))
    assert program.stdin is not None
    program.stdin.write(b"question")
    program.stdin.close()
    host.wait_for(lambda: service.has_all)
    assert service.stdin == b"question"
    for part in service.end.stdout(b"answer") + service.end.stderr(b"warning"):
        host.send(service.stream, part)
    service.finish(42)
    host.wait_for(lambda: program.poll() is not None)
    assert (program.returncode, program.stdout.read(), program.stderr.read()) == (42, b"answer", b"warning")  # type: ignore[union-attr]
    host.wait_for(lambda: ConnectionTerminated(TARGET_DOMAIN, PORT) in host.messages)


def test_program_refused_says_so_with_126(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B")
    host.say(host.control.refuse_service(asked(host)[0].ident))
    host.wait_for(lambda: program.poll() is not None)
    assert (program.returncode, program.stderr.read()) == (126, b"Request refused\n")  # type: ignore[union-attr]


def test_ten_megabytes_each_way_arrive_whole(qube: tuple[Agent, Host], tmp_path: Path) -> None:
    agent, host = qube
    data = os.urandom(10_000_000)
    (tmp_path / "in").write_bytes(data)
    out, into = os.pipe()
    with os.fdopen(out), os.fdopen(into), (tmp_path / "out").open("wb") as output:
        feeder = subprocess.Popen(["cat", str(tmp_path / "in")], stdout=into)
        program = agent.program("vault", "a.B", stdin=out, stdout=output)
    service = Service(host, grant(host, asked(host)[0]))
    host.wait_for(lambda: service.has_all)
    assert service.stdin == data
    for start in range(0, len(data), 65536):
        for part in service.end.stdout(data[start : start + 65536]):
            host.send(service.stream, part)
    service.finish(0)
    host.wait_for(lambda: program.poll() is not None)
    feeder.wait(PATIENCE_S)
    assert program.returncode == 0
    assert (tmp_path / "out").read_bytes() == data


def holds(process: int, fd: int, pipe: str) -> bool:
    try:
        return str(Path(f"/proc/{process}/fd/{fd}").readlink()) == pipe
    except OSError:
        return False


def give_large_input(agent: Agent, host: Host) -> tuple[subprocess.Popen[bytes], Service, str, bytes]:
    """A call whose input was taken by the agent; how that pipe is named, and what was written to it until then."""
    program = agent.program("vault", "a.B")
    assert program.stdin is not None
    pipe = str(Path(f"/proc/self/fd/{program.stdin.fileno()}").readlink())
    service = Service(host, grant(host, asked(host)[0]))
    os.set_blocking(program.stdin.fileno(), False)
    written = b""

    def is_taken() -> bool:
        nonlocal written
        with contextlib.suppress(BlockingIOError):
            piece = os.urandom(30_000)
            written += piece[: os.write(program.stdin.fileno(), piece)]  # type: ignore[union-attr]
        return len(written) > LARGE and not holds(program.pid, 0, pipe)

    host.wait_for(is_taken)
    return program, service, pipe, written


def test_large_input_is_read_by_the_agent_and_arrives_whole_with_its_end(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program, service, pipe, written = give_large_input(agent, host)
    assert not not_held(agent, pipe)
    assert program.stdin is not None
    for piece in (b"a few words", os.urandom(3_000_000), b"and an end"):
        thread = threading.Thread(target=write_all, args=(program.stdin.fileno(), piece))
        thread.start()
        written += piece
        host.wait_for(lambda: len(service.stdin) == len(written))  # noqa: B023 - called here and now
        thread.join(PATIENCE_S)
    assert service.stdin == written
    assert not service.has_all
    program.stdin.close()
    host.wait_for(lambda: service.has_all)
    assert service.stdin == written
    for part in service.end.stdout(b"thanks"):
        host.send(service.stream, part)
    service.finish(5)
    host.wait_for(lambda: program.poll() is not None)
    assert (program.returncode, program.stdout.read()) == (5, b"thanks")  # type: ignore[union-attr]
    host.wait_for(lambda: ConnectionTerminated(TARGET_DOMAIN, PORT) in host.messages)


def write_all(fd: int, data: bytes) -> None:
    os.set_blocking(fd, True)
    while data:
        data = data[os.write(fd, data) :]


def test_large_input_is_let_go_when_the_service_has_ended(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program, service, pipe, _ = give_large_input(agent, host)
    service.finish(7)
    host.wait_for(lambda: program.poll() is not None)
    assert program.returncode == 7
    host.wait_for(lambda: not_held(agent, pipe))
    with pytest.raises(BrokenPipeError):
        os.write(program.stdin.fileno(), b"nobody reads this")  # type: ignore[union-attr]


def not_held(agent: Agent, pipe: str) -> bool:
    return not any(
        holds(agent.process.pid, int(fd.name), pipe) for fd in Path(f"/proc/{agent.process.pid}/fd").iterdir()
    )


def test_program_killed_after_it_gave_its_input_ends_the_call(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program, service, pipe, _ = give_large_input(agent, host)
    program.kill()
    host.wait_for(lambda: service.stream in host.reset)
    host.wait_for(lambda: ConnectionTerminated(TARGET_DOMAIN, PORT) in host.messages)
    host.wait_for(lambda: not_held(agent, pipe))


def test_host_that_reads_nothing_paces_large_input(qube: tuple[Agent, Host]) -> None:
    """MC-14: the agent holds none of it."""
    agent, host = qube
    program, service, _, written = give_large_input(agent, host)
    host.wait_for(lambda: service.stdin == written)
    host.is_read = False
    sent = 0

    def is_stuck() -> bool:
        nonlocal sent
        try:
            sent += os.write(program.stdin.fileno(), bytes(65536))  # type: ignore[union-attr]
        except BlockingIOError:
            return host.mux._streams.by_number[service.stream].receive_credit < ENOUGH_ROOM
        return False

    host.wait_for(is_stuck)
    assert sent < limits.MUX_MAX_WINDOW + 2 * CHANNEL_SIZE


@pytest.mark.parametrize("size", [65536, 61440, 9001, 4096, 1])
def test_output_into_a_pipe_arrives_whole_whatever_its_pieces(qube: tuple[Agent, Host], size: int) -> None:
    agent, host = qube
    data = os.urandom(min(4_000_000, 3000 * size))
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host)[0]))
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(program.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    for start in range(0, len(data), size):
        for part in service.end.stdout(data[start : start + size]):
            host.send(service.stream, part)
    service.finish(3)
    host.wait_for(lambda: program.poll() is not None)
    reader.join(PATIENCE_S)
    assert program.returncode == 3
    assert received == [data]


def test_output_nobody_reads_any_more_does_not_fail_the_call(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host)[0]))
    program.stdout.close()  # type: ignore[union-attr]
    for _ in range(60):
        for part in service.end.stdout(bytes(65536)):
            host.send(service.stream, part)
    service.finish(4)
    host.wait_for(lambda: program.poll() is not None)
    assert program.returncode == 4


def test_slow_reader_paces_the_service_and_gets_all(qube: tuple[Agent, Host]) -> None:
    """MC-14."""
    agent, host = qube
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host)[0]))
    message = service.end.stdout(bytes(65536))[0]
    sent = 0
    while host.mux.writable(service.stream) >= len(message):
        host.mux.send(service.stream, message)
        sent += 65536
        host.turn(0.1)
    assert sent < 5_000_000
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(program.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    service.finish(0)
    host.wait_for(lambda: program.poll() is not None)
    reader.join(PATIENCE_S)
    assert len(received[0]) == sent


def test_program_killed_ends_the_call_and_frees_the_port(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host)[0]))
    program.kill()
    host.wait_for(lambda: service.stream in host.reset)
    host.wait_for(lambda: ConnectionTerminated(TARGET_DOMAIN, PORT) in host.messages)


def test_program_killed_while_asking_takes_its_request_back(qube: tuple[Agent, Host]) -> None:
    """MC-24: so the host can take its question to the user back."""
    agent, host = qube
    program = agent.program("vault", "a.B")
    (request,) = asked(host)
    program.kill()
    host.wait_for(lambda: ServiceRefused(request.ident) in host.messages)


def test_answer_for_a_program_that_has_gone_gives_the_port_back(qube: tuple[Agent, Host]) -> None:
    """MC-24: an answer that comes too late reaches nobody."""
    agent, host = qube
    program = agent.program("vault", "a.B")
    (request,) = asked(host)
    program.kill()
    host.wait_for(lambda: ServiceRefused(request.ident) in host.messages)
    stream = grant(host, request)
    host.wait_for(lambda: stream in host.reset)
    assert ConnectionTerminated(TARGET_DOMAIN, PORT) in host.messages


@pytest.mark.parametrize("ident", [b"SOCKET99", b"", b"other"])
def test_answer_nobody_waits_for_is_not_delivered(qube: tuple[Agent, Host], ident: bytes) -> None:
    """MC-21."""
    agent, host = qube
    program = agent.program("vault", "a.B")
    (request,) = asked(host)
    stream = host.open(PORT)
    host.say(host.control.connect_service(TARGET_DOMAIN, PORT, ident))
    host.wait_for(lambda: stream in host.reset)
    assert program.poll() is None
    host.say(host.control.refuse_service(request.ident))
    host.wait_for(lambda: program.poll() is not None)


def test_answer_given_twice_reaches_the_program_once(qube: tuple[Agent, Host]) -> None:
    """MC-21."""
    agent, host = qube
    agent.program("vault", "a.B").stdin.close()  # type: ignore[union-attr]
    (request,) = asked(host)
    service = Service(host, grant(host, request))
    second = grant(host, request, PORT + 1)
    host.wait_for(lambda: second in host.reset)
    host.wait_for(lambda: service.has_all)
    service.finish(0)


def test_lost_stream_gives_the_program_255(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host)[0]))
    host.mux.reset(service.stream)
    host.wait_for(lambda: program.poll() is not None)
    assert program.returncode == 255


def test_host_that_starts_over_refuses_what_was_asked_and_serves_what_comes(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    program = agent.program("vault", "a.B")
    asked(host)
    host.control.version = None
    host.begin()
    host.wait_ready()
    host.wait_for(lambda: program.poll() is not None)
    assert program.returncode == 126
    again = agent.program("vault", "a.B")
    host.say(host.control.refuse_service(asked(host)[0].ident))
    host.wait_for(lambda: again.poll() is not None)


def test_request_before_the_host_is_there_waits(tmp_path: Path) -> None:
    with agent_and_host(tmp_path) as (agent, host):
        host.wait_for(agent.socket.exists)
        program = agent.program("vault", "a.B")
        host.begin()
        host.wait_ready()
        host.say(host.control.refuse_service(asked(host)[0].ident))
        host.wait_for(lambda: program.poll() is not None)
        assert program.returncode == 126


def test_version_3_carries_the_request_without_source(tmp_path: Path) -> None:
    with agent_and_host(tmp_path, version=3) as (agent, host):
        host.begin()
        host.wait_ready()
        refused = agent.program("-s", "other", "vault", "a.B")
        host.wait_for(lambda: refused.poll() is not None)
        assert refused.returncode == 126
        program = agent.program("vault", "a.B")
        (request,) = asked(host)
        assert (request.target, request.service) == ("vault", "a.B")
        program.kill()
        program.wait()


def test_socket_is_open_to_all_users_and_removed_at_the_end(tmp_path: Path) -> None:
    with agent_and_host(tmp_path) as (agent, host):
        host.wait_for(agent.socket.exists)
        host.begin()
        host.wait_ready()
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o666
    assert not agent.socket.exists()


@pytest.mark.parametrize(
    "request_bytes",
    [
        encode(qrexec.Hello(4)),
        encode(TriggerService(None, b"vault", b"SOCKET", b"a.B")),
        qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 160) + bytes(160),
        qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE4, 0x7FFFFFFF),
        REQUEST[:-1] + b"c",
        REQUEST + b"x",
        REQUEST + REQUEST,
    ],
)
def test_request_outside_the_protocol_is_refused_before_the_host_hears_of_it(
    qube: tuple[Agent, Host], request_bytes: bytes
) -> None:
    """MC-11, MC-12: the others go on."""
    agent, host = qube
    with agent.connect() as connection:
        connection.sendall(request_bytes)
        assert connection.recv(1) == b""
    with agent.connect() as connection:
        connection.sendall(REQUEST)
        assert len(asked(host)) == 1


def test_programs_that_say_nothing_cost_nobody_else(qube: tuple[Agent, Host]) -> None:
    """MC-13, MC-15."""
    agent, host = qube
    silent = [agent.connect() for _ in range(requests.MAX_CLIENTS)]
    for connection in silent[: requests.MAX_CLIENTS // 2]:
        connection.sendall(REQUEST[:-1])
    with agent.connect() as connection:
        connection.sendall(REQUEST)
        assert asked(host)[0].service == "a.B+c"
    for connection in silent:
        connection.close()


def test_requests_over_the_limit_are_refused_at_once(qube: tuple[Agent, Host]) -> None:
    """MC-15."""
    agent, host = qube
    waiting = []
    for _ in range(requests.MAX_CLIENTS):
        waiting.append(agent.connect())
        waiting[-1].sendall(REQUEST)
    asked(host, requests.MAX_CLIENTS)
    with agent.connect() as connection:
        assert connection.recv(1) == b""
    host.say(host.control.refuse_service(asked(host)[0].ident))
    assert waiting[0].recv(1) == b""
    with agent.connect() as connection:
        connection.sendall(REQUEST)
        asked(host, requests.MAX_CLIENTS + 1)
    for connection in waiting:
        connection.close()


def test_program_that_does_not_read_stops_only_its_own_stream(qube: tuple[Agent, Host]) -> None:
    """MC-14."""
    agent, host = qube
    lazy = agent.connect()
    lazy.sendall(REQUEST)
    stream = grant(host, asked(host)[0])
    answer, descriptors, _, _ = socket.recv_fds(lazy, 8, 1)
    assert len(answer) == 8
    sent = 0
    while room := host.mux.writable(stream):
        host.mux.send(stream, bytes(room))
        sent += room
        host.turn(0.2)
    assert sent < 4_000_000
    program = agent.program("vault", "a.B")
    service = Service(host, grant(host, asked(host, 2)[1], PORT + 1))
    program.stdin.close()  # type: ignore[union-attr]
    host.wait_for(lambda: service.has_all)
    service.finish(3)
    host.wait_for(lambda: program.poll() is not None)
    assert program.returncode == 3
    os.close(descriptors[0])
    lazy.close()


def test_one_descriptor_comes_with_the_answer_and_is_the_data_channel(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    with agent.connect() as connection:
        connection.sendall(REQUEST)
        stream = grant(host, asked(host)[0])
        host.send(stream, b"from the host")
        host.wait_for(lambda: not host.mux.queued)
        answer, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        assert requests.ANSWER.unpack(answer) == (TARGET_DOMAIN, PORT)
        with socket.socket(fileno=descriptors[0]) as channel:
            assert channel.recv(100) == b"from the host"
            channel.sendall(b"from the program")
            host.wait_for(lambda: host.received.get(stream) == b"from the program")


def test_program_that_takes_pipes_gets_two_others_a_socket(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    with agent.connect() as connection:
        socket.send_fds(connection, [REQUEST], [0, 0, 0])
        stream = grant(host, asked(host)[0])
        host.send(stream, b"from the host")
        host.wait_for(lambda: not host.mux.queued)
        _, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        incoming, outgoing = descriptors
        assert [stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in descriptors] == [True, True]
        assert os.read(incoming, 100) == b"from the host"
        os.write(outgoing, b"from the program")
        host.wait_for(lambda: host.received.get(stream) == b"from the program")
        os.close(outgoing)
        host.wait_for(lambda: stream in host.reset)
        os.close(incoming)


@pytest.mark.parametrize(("said", "what"), [(b"X", "pipe"), (b"II", "pipe"), (b"I", "file"), (b"I", "nothing")])
def test_input_that_cannot_be_taken_stays_the_programs_and_its_call_goes_on(
    qube: tuple[Agent, Host], said: bytes, what: str
) -> None:
    agent, host = qube
    program = agent.connect()
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    given = {"pipe": [reading], "file": [null], "nothing": []}[what]
    socket.send_fds(program, [REQUEST], [null])
    stream = grant(host, asked(host)[0])
    host.turn(0.1)
    _, channel, _, _ = socket.recv_fds(program, 100, 2)
    socket.send_fds(program, [said], given)
    program.setblocking(False)
    answers: list[bytes] = []

    def is_answered() -> bool:
        with contextlib.suppress(BlockingIOError):
            answers.append(program.recv(10))
        return bool(answers)

    host.wait_for(is_answered)
    assert answers == [b""]
    os.write(channel[1], b"still here")
    host.wait_for(lambda: host.received.get(stream) == b"still here")
    for fd in (reading, writing, null, *channel):
        os.close(fd)


@pytest.mark.parametrize("pipes", [0, 1])
def test_program_that_leaves_while_the_host_takes_nothing_ends_its_call_and_costs_no_time(
    qube: tuple[Agent, Host], pipes: int
) -> None:
    """MC-14: the agent is asleep meanwhile."""
    agent, host = qube
    host.is_read = False
    with agent.connect() as connection:
        socket.send_fds(connection, [REQUEST], [0] * pipes)
        stream = grant(host, asked(host)[0])
        _, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
        os.set_blocking(descriptors[-1], False)
        try:
            while True:
                os.write(descriptors[-1], bytes(65536))
                host.turn(0.02)
        except BlockingIOError:
            pass
        for fd in descriptors:
            os.close(fd)
    host.wait_for(lambda: stream in host.reset)
    before = cpu_ticks(agent)
    for _ in range(25):
        host.turn(0.02)
    assert cpu_ticks(agent) - before < 10


def test_program_that_only_stops_reading_ends_its_call(qube: tuple[Agent, Host]) -> None:
    agent, host = qube
    with agent.connect() as connection:
        socket.send_fds(connection, [REQUEST], [0])
        stream = grant(host, asked(host)[0])
        host.wait_for(lambda: not host.mux.queued)
        _, (incoming, outgoing), _, _ = socket.recv_fds(connection, 8, 2)
        os.close(incoming)
        host.send(stream, b"nobody reads this")
        host.wait_for(lambda: stream in host.reset)
        os.close(outgoing)


def test_descriptors_sent_along_stay_nowhere_open(qube: tuple[Agent, Host]) -> None:
    """MC-15: who sends many does not use up the agent's."""
    agent, host = qube

    def ask(number: int) -> None:
        with agent.connect() as connection:
            connection.sendall(REQUEST)
            host.say(host.control.refuse_service(asked(host, number)[number - 1].ident))
            assert connection.recv(1) == b""

    descriptors = Path(f"/proc/{agent.process.pid}/fd")
    ask(1)
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with agent.connect() as connection:
            socket.send_fds(connection, [REQUEST[:50]], [0] * 100)
            socket.send_fds(connection, [REQUEST[50:-1]], [0] * 100)
    ask(2)
    host.wait_for(lambda: len(list(descriptors.iterdir())) == before)


# --- without a process ---------------------------------------------------------------------------------------------


class Desk:
    """Requests on a loop of the test's own; what would go to the host is written down."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[bytes] = []
        self.loop = Loop()
        self.path = str(folder / "agent.sock")
        self.requests = Requests(
            self.loop, self.path, lambda ident, request: self.asked.append(ident), lambda ident: None
        )
        self.requests.listen()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.setblocking(False)
        return connection

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until this is so."""

        def look() -> None:
            if condition():
                self.loop.stop(0)
            else:
                self.loop.after(0.005, look)

        self.loop._exit_code = None
        self.loop.after(PATIENCE_S, lambda: self.loop.stop(1))
        look()
        assert self.loop.run() == 0


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_program_that_does_not_finish_its_request_is_closed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-13."""
    monkeypatch.setattr(requests, "REQUEST_TIMEOUT", 3600.0)
    desk = Desk(tmp_path)
    with desk.connect() as half, desk.connect() as whole:
        half.sendall(REQUEST[:-1])
        whole.sendall(REQUEST)
        clients = desk.requests._clients
        desk.run_until(lambda: len(clients) == 2 and any(client.request for client in clients))
        # Now that both were read their time is over, however long that took.
        for client in clients:
            assert 0 < client._timer.due - time.monotonic() <= requests.REQUEST_TIMEOUT
            client._timer.due = 0.0
        desk.run_until(lambda: is_closed(half))
        assert not is_closed(whole)
    desk.requests.close()


def test_request_is_made_when_the_host_is_there_and_this_is_somebody(tmp_path: Path) -> None:
    """MC-67: in whichever order they come."""
    for steps in (("connected", "allow"), ("allow", "connected")):
        desk = Desk(tmp_path)
        with desk.connect() as connection:
            connection.sendall(REQUEST)
            getattr(desk.requests, steps[0])()
            desk.run_until(lambda desk=desk: any(client.request for client in desk.requests._clients))  # type: ignore[misc]
            assert desk.asked == []
            getattr(desk.requests, steps[1])()
            assert desk.asked == [b"SOCKET1"]
            desk.requests.lost()
            assert is_closed(connection)
        desk.requests.close()
