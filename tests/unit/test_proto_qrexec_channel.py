from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    ExitCode,
    Hello,
    JustExec,
    MalformedTrigger,
    Message,
    ServiceConnect,
    Stderr,
    Stdin,
    Stdout,
    TriggerService,
)
from insula_proto.qrexec_channel import (
    AgentControl,
    CallerEnd,
    DaemonControl,
    LocalClient,
    LocalServer,
    ServiceEnd,
    ServiceRequested,
)

ENDS = (AgentControl, DaemonControl, CallerEnd, ServiceEnd)


def wire(*messages: Message) -> bytes:
    return b"".join(qrexec.encode(message) for message in messages)


def opened(end: type[AgentControl | DaemonControl | CallerEnd | ServiceEnd], version: int = 4):  # type: ignore[no-untyped-def]
    channel = end()
    assert channel.receive(wire(Hello(version))) == [Hello(version)]
    return channel


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("version", [0, 2])
def test_hello_unsupported_version_drops_peer(end: type[AgentControl], version: int) -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        end().receive(wire(Hello(version)))


@pytest.mark.parametrize("end", ENDS)
def test_hello_twice_drops_peer(end: type[AgentControl]) -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        end().receive(wire(Hello(4), Hello(4)))


@pytest.mark.parametrize("end", ENDS)
def test_anything_before_hello_drops_peer(end: type[AgentControl]) -> None:
    """MC-12: right type, wrong state."""
    for message in (Stdin(b"x"), ExecCmdline(0, 513, b"x"), ConnectionTerminated(0, 513), ExitCode(0)):
        with pytest.raises(RemoteProtocolError):
            end().receive(wire(message))


@pytest.mark.parametrize("end", ENDS)
def test_half_a_header_is_seen_as_owed(end: type[AgentControl]) -> None:
    """MC-13: who times out a silent peer can ask whether it owes something."""
    channel = end()
    assert not channel.is_between_messages
    channel.receive(wire(Hello(4)))
    assert channel.is_between_messages
    channel.receive(b"\0\0\0")
    assert not channel.is_between_messages


@given(st.integers(1, 20))
def test_control_channel_both_ends_any_split_negotiate_and_talk(size: int) -> None:
    agent, daemon = AgentControl(own_version=3), DaemonControl()

    def pass_on(data: bytes, end: AgentControl | DaemonControl) -> list[Message]:
        return [m for start in range(0, len(data), size) for m in end.receive(data[start : start + size])]

    pass_on(agent.hello(), daemon)
    assert pass_on(daemon.answer(), agent) == [Hello(3)]
    assert agent.version == daemon.version == 3
    command = ExecCmdline(0, 513, b"user:true")
    assert pass_on(daemon.execute(command), agent) == [command]
    assert pass_on(agent.connection_terminated(0, 513), daemon) == [ConnectionTerminated(0, 513)]
    [request] = pass_on(agent.trigger_service(b"dom0", b"SOCKET1", b"a.B+c"), daemon)
    assert isinstance(request, ServiceRequested)
    assert (request.target, request.service, request.ident) == ("dom0", "a.B+c", b"SOCKET1")
    assert not request.is_altered


@pytest.mark.parametrize(("version", "source"), [(4, None), (3, b"")])
def test_daemon_trigger_of_other_version_drops_peer(version: int, source: bytes | None) -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        opened(DaemonControl, version).receive(wire(TriggerService(source, b"t", b"i", b"s")))


def test_daemon_trigger_version_2_drops_peer() -> None:
    with pytest.raises(RemoteProtocolError):
        opened(DaemonControl).receive(struct.pack("<II", qrexec.TRIGGER_SERVICE, 128) + bytes(128))


@pytest.mark.parametrize(
    "service", [b"a/b", b"..\x2f", b"$HOME", b"`id`", b"a\nb", b'a"b', b"a'b", "ä".encode(), b"a b", b"a;b"]
)
def test_daemon_service_outside_alphabet_marked_altered(service: bytes) -> None:
    """MC-16."""
    [request] = opened(DaemonControl).receive(wire(TriggerService(b"", b"dom0", b"SOCKET1", service)))
    assert request.is_altered
    assert qrexec.SERVICE_ALPHABET.issuperset(request.service.encode())


def test_daemon_malformed_trigger_does_not_drop_peer() -> None:
    channel = opened(DaemonControl)
    body = bytes(128) + b"bad/ident".ljust(32, b"\0") + b"svc\0"
    [message] = channel.receive(struct.pack("<II", qrexec.TRIGGER_SERVICE4, len(body)) + body)
    assert isinstance(message, MalformedTrigger)
    assert channel.refuse_service(message.raw_ident) == struct.pack("<II", 0x203, 32) + b"bad/ident".ljust(32, b"\0")


@pytest.mark.parametrize("port", [0, 512, 769, 0xFFFFFFFF])
def test_daemon_terminated_port_out_of_range_drops_peer(port: int) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(DaemonControl).receive(wire(ConnectionTerminated(0, port)))


def test_agent_source_in_version_3_refused_locally() -> None:
    with pytest.raises(LocalProtocolError):
        opened(AgentControl, 3).trigger_service(b"t", b"i", b"s", source=b"other")


@pytest.mark.parametrize("end", ENDS)
def test_sending_before_hello_refused_locally(end: type) -> None:
    channel = end()
    with pytest.raises(LocalProtocolError):
        {
            AgentControl: lambda: channel.connection_terminated(0, 513),
            DaemonControl: lambda: channel.answer() or b"",
            CallerEnd: lambda: channel.stdin(b"x"),
            ServiceEnd: lambda: channel.finish(0),
        }[end]()


def test_caller_whole_call_returns_output_and_code() -> None:
    caller = opened(CallerEnd)
    messages = [Stdout(b"out"), Stderr(b"err"), Stdout(b""), Stderr(b""), ExitCode(3)]
    assert caller.receive(wire(*messages)) == messages
    assert caller.exit_code == 3


@pytest.mark.parametrize(
    "messages",
    [
        (Stdout(b""), Stdout(b"x")),
        (Stderr(b""), Stderr(b"")),
        (ExitCode(0), ExitCode(0)),
        (ExitCode(0), Stdout(b"x")),
        (Stdin(b""), Stdout(b"x")),
    ],
)
def test_caller_data_after_end_or_second_exit_code_drops_peer(messages: tuple[Message, ...]) -> None:
    """MC-21."""
    with pytest.raises(RemoteProtocolError):
        opened(CallerEnd).receive(wire(*messages))


def test_caller_stdin_from_service_is_its_output() -> None:
    assert opened(CallerEnd).receive(wire(Stdin(b"x"))) == [Stdout(b"x")]


def test_caller_stdin_after_its_end_refused_locally() -> None:
    caller = opened(CallerEnd)
    assert caller.stdin(b"x") == [wire(Stdin(b"x"))]
    assert caller.stdin_end() == wire(Stdin(b""))
    with pytest.raises(LocalProtocolError):
        caller.stdin(b"y")


def test_service_callers_stderr_and_exit_code_ignored() -> None:
    service = opened(ServiceEnd)
    assert service.receive(wire(Stderr(b"x"), ExitCode(0), Stdout(b"a"), Stdin(b""))) == [Stdin(b"a"), Stdin(b"")]


def test_service_stdin_after_its_end_drops_peer() -> None:
    """MC-21."""
    with pytest.raises(RemoteProtocolError):
        opened(ServiceEnd).receive(wire(Stdin(b""), Stdin(b"x")))


def test_service_finish_sends_missing_ends_then_code_once() -> None:
    service = opened(ServiceEnd)
    service.stdout_end()
    assert service.finish(7) == wire(Stderr(b""), ExitCode(7))
    with pytest.raises(LocalProtocolError):
        service.finish(7)
    with pytest.raises(LocalProtocolError):
        service.stderr(b"late")


# version 2, for agents of other people


def trigger2(service: bytes, target: bytes = b"dom0", ident: bytes = b"SOCKET1") -> bytes:
    body = service.ljust(64, b"\0") + target.ljust(32, b"\0") + ident.ljust(32, b"\0")
    return qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE, len(body)) + body


def version_2(end: type[DaemonControl | CallerEnd | ServiceEnd]):  # type: ignore[no-untyped-def]
    channel = end(oldest=qrexec.OLDEST_VERSION)
    assert channel.receive(wire(Hello(2))) == [Hello(2)]
    return channel


def test_version_2_only_where_it_is_asked_for() -> None:
    with pytest.raises(RemoteProtocolError):
        DaemonControl(oldest=qrexec.OLDEST_VERSION).receive(wire(Hello(1)))
    assert version_2(DaemonControl).answer() == wire(Hello(2))


def test_version_2_trigger_is_a_request_without_source() -> None:
    [request] = version_2(DaemonControl).receive(trigger2(b"a.B+c", b"work"))
    assert (request.service, request.target, request.ident, request.claimed_source) == ("a.B+c", "work", b"SOCKET1", "")


@pytest.mark.parametrize("service", [b"", b"\0", b"\0a", b"\0+a", b"+", b"+a"])
def test_version_2_trigger_without_a_name_is_malformed(service: bytes) -> None:
    [message] = version_2(DaemonControl).receive(trigger2(service))
    assert isinstance(message, MalformedTrigger)
    assert message.raw_ident == b"SOCKET1".ljust(32, b"\0")


@pytest.mark.parametrize("message", [TriggerService(b"", b"t", b"i", b"s"), TriggerService(None, b"t", b"i", b"s")])
def test_version_2_trigger_of_later_version_drops_peer(message: Message) -> None:
    """MC-12."""
    with pytest.raises(RemoteProtocolError):
        version_2(DaemonControl).receive(wire(message))


def test_version_2_data_comes_and_goes_in_smaller_messages() -> None:
    """MC-11."""
    small = limits.QREXEC_MAX_CHUNK_2
    caller, service = version_2(CallerEnd), version_2(ServiceEnd)
    assert caller.max_chunk == small
    parts = caller.stdin(bytes(small + 1))
    assert [len(part) - qrexec.HEADER.size for part in parts] == [small, 1]
    assert sum(len(m.data) for m in service.receive(b"".join(parts))) == small + 1
    with pytest.raises(LocalProtocolError):
        caller.stdin_header(small + 1)
    with pytest.raises(RemoteProtocolError):
        service.receive(qrexec.HEADER.pack(qrexec.STDIN, small + 1))


# local requests

REQUESTS = (
    ExecCmdline(0, 0, b"user:true"),
    JustExec(7, 0, b"DEFAULT:true"),
    ServiceConnect(7, 514, b"SOCKET1"),
    ServiceConnect(0, 0, b"", 32),
)


@pytest.mark.parametrize("request_", REQUESTS)
@given(size=st.integers(1, 40))
def test_local_request_any_split_is_answered(request_: ExecCmdline | JustExec | ServiceConnect, size: int) -> None:
    client, server = LocalClient(), LocalServer()

    def pass_on(data: bytes, end: LocalClient | LocalServer) -> list[Message]:
        return [m for start in range(0, len(data), size) for m in end.receive(data[start : start + size])]

    assert pass_on(server.hello(), client) == [Hello(3)]
    assert pass_on(client.hello() + client.request(request_), server) == [Hello(3), request_]
    [answer] = pass_on(server.answer(42, 513), client)
    assert type(answer) is type(request_)
    assert (answer.domain, answer.port) == (42, 513)
    with pytest.raises(LocalProtocolError):
        client.request(request_)


def test_local_connect_with_shorter_ident_is_passed_on_as_it_came() -> None:
    body = struct.pack("<II", 43, 513) + b"SOCKET11\0"
    server = LocalServer()
    server.receive(wire(Hello(3)))
    [request] = server.receive(struct.pack("<II", qrexec.SERVICE_CONNECT, len(body)) + body)
    assert isinstance(request, ServiceConnect)
    assert request.ident == b"SOCKET11"
    assert opened(DaemonControl).forward_connect(request)[8:] == body


@pytest.mark.parametrize(
    "data",
    [
        wire(ExitCode(0)),
        wire(REQUESTS[0], REQUESTS[0]),
        struct.pack("<II", qrexec.EXEC_CMDLINE, 8) + bytes(8),
        struct.pack("<II", qrexec.SERVICE_CONNECT, 41) + bytes(41),
        struct.pack("<IIII", qrexec.SERVICE_CONNECT, 10, 0, 0) + b"ab",
        struct.pack("<IIII", qrexec.EXEC_CMDLINE, 10, 0, 0) + b"ab",
        struct.pack("<II", qrexec.EXEC_CMDLINE, 65536),
        wire(Hello(3)),
    ],
)
def test_local_server_bad_request_drops_client(data: bytes) -> None:
    server = LocalServer()
    server.receive(wire(Hello(3)))
    with pytest.raises(RemoteProtocolError):
        server.receive(data)


@pytest.mark.parametrize("end", [LocalClient, LocalServer])
def test_local_version_below_3_drops_peer(end: type[LocalClient | LocalServer]) -> None:
    with pytest.raises(RemoteProtocolError):
        end().receive(wire(Hello(2)))


def test_local_client_answer_of_another_type_or_unasked_drops_daemon() -> None:
    client = LocalClient()
    client.receive(wire(Hello(3)))
    with pytest.raises(RemoteProtocolError):
        client.receive(wire(ExecCmdline(1, 513)))
    client = LocalClient()
    client.receive(wire(Hello(3)))
    client.request(REQUESTS[0])
    with pytest.raises(RemoteProtocolError):
        client.receive(wire(JustExec(1, 513)))


def test_local_server_answer_before_a_request_refused_locally() -> None:
    with pytest.raises(LocalProtocolError):
        LocalServer().answer(1, 513)


def test_caller_output_that_goes_another_way_is_counted_and_then_messages_go_on() -> None:
    caller = CallerEnd()
    assert caller.output_left == 0
    caller.receive(wire(Hello(4)))
    caller.receive(wire(Stdout(b"x" * 100))[:18])
    assert (caller.output_left, caller.missing) == (90, 90)
    caller.skip_output(60)
    assert caller.output_left == 30
    with pytest.raises(LocalProtocolError):
        caller.skip_output(31)
    caller.skip_output(30)
    assert caller.receive(wire(ExitCode(3))) == [ExitCode(3)]


def test_caller_output_after_its_end_is_refused_though_it_goes_another_way() -> None:
    """MC-21."""
    caller = CallerEnd()
    caller.receive(wire(Hello(4)) + wire(Stdout(b"")))
    caller.receive(wire(Stdout(b"x" * 100))[:8])
    with pytest.raises(RemoteProtocolError):
        caller.skip_output(1)


def test_caller_error_output_is_never_taken_for_output() -> None:
    caller = CallerEnd()
    caller.receive(wire(Hello(4)))
    caller.receive(wire(Stderr(b"x" * 100))[:8])
    assert caller.output_left == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([qrexec.STDIN, qrexec.STDOUT, qrexec.STDERR]), st.binary(max_size=40)), max_size=8
    ),
    st.integers(1, 60),
    st.data(),
)
def test_input_taken_as_bodies_is_what_messages_would_have_been(
    said: list[tuple[int, bytes]], size: int, data: st.DataObject
) -> None:
    """Any split, also where some of the input is mutated: both ways see the same, or both refuse it (MC-11)."""
    wire = bytearray(b"".join(qrexec.HEADER.pack(kind, len(body)) + body for kind, body in said))
    for _ in range(data.draw(st.integers(0, 2)) if wire else 0):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))

    def run(*, as_bodies: bool) -> tuple[bytes, bool, bool]:
        end = ServiceEnd()
        end.receive(CallerEnd().hello())
        got, is_ended = b"", False
        for start in range(0, len(wire), size):
            piece = bytes(wire[start : start + size])
            bodies: list[bytes | memoryview] = []
            try:
                taken = end.take_stdin(piece, bodies) if as_bodies else 0
                messages = end.receive(piece[taken:]) if taken < len(piece) else []
            except RemoteProtocolError:
                return got, is_ended, True
            got += b"".join(bodies)
            for message in messages:
                if isinstance(message, Stdin):
                    got += message.data
                    is_ended = is_ended or not message.data
        return got, is_ended, False

    bodies, messages = run(as_bodies=True), run(as_bodies=False)
    assert bodies[2] == messages[2]
    if not bodies[2]:
        assert bodies == messages


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([qrexec.STDIN, qrexec.STDOUT, qrexec.STDERR]), st.binary(max_size=40)),
            st.just((qrexec.EXIT_CODE, struct.pack("<I", 7))),
        ),
        max_size=8,
    ),
    st.integers(1, 60),
    st.data(),
)
def test_output_taken_as_bodies_is_what_messages_would_have_been(
    said: list[tuple[int, bytes]], size: int, data: st.DataObject
) -> None:
    """As above, for the caller's end: output is taken neither behind its end nor behind the exit code (MC-11)."""
    wire = bytearray(b"".join(qrexec.HEADER.pack(kind, len(body)) + body for kind, body in said))
    for _ in range(data.draw(st.integers(0, 2)) if wire else 0):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))

    def run(*, as_bodies: bool) -> tuple[bytes, bytes, bool, int | None, bool]:
        end = CallerEnd()
        end.receive(ServiceEnd().hello())
        got, errors, is_ended = b"", b"", False
        for start in range(0, len(wire), size):
            piece = bytes(wire[start : start + size])
            bodies: list[bytes | memoryview] = []
            try:
                taken = end.take_stdout(piece, bodies) if as_bodies else 0
                messages = end.receive(piece[taken:]) if taken < len(piece) else []
            except RemoteProtocolError:
                return got, errors, is_ended, end.exit_code, True
            got += b"".join(bodies)
            for message in messages:
                if isinstance(message, Stdout):
                    got += message.data
                    is_ended = is_ended or not message.data
                elif isinstance(message, Stderr):
                    errors += message.data
        return got, errors, is_ended, end.exit_code, False

    bodies, messages = run(as_bodies=True), run(as_bodies=False)
    assert bodies[4] == messages[4]
    if not bodies[4]:
        assert bodies == messages
