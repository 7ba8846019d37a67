from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    ExitCode,
    Hello,
    MalformedTrigger,
    Message,
    Stderr,
    Stdin,
    Stdout,
    TriggerService,
)
from insula_proto.qrexec_channel import AgentControl, CallerEnd, DaemonControl, ServiceEnd, ServiceRequested

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
