"""Playbooks: these events in, these commands out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.qrexec.switchboard import (
    MAX_ERRANDS,
    CloseClient,
    Command,
    OpenSockets,
    Ports,
    RemoveSockets,
    Report,
    SendToAgent,
    SendToClient,
    StartErrand,
    Switchboard,
)
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import (
    ConnectionTerminated,
    ExecCmdline,
    Hello,
    JustExec,
    Message,
    ServiceConnect,
    ServiceRefused,
    TriggerService,
)

OWN = 42


def wire(*messages: Message) -> bytes:
    return b"".join(map(qrexec.encode, messages))


def ready(version: int = 4, own: int = OWN) -> Switchboard:
    board = Switchboard(own)
    assert board.agent_connected() == []
    assert board.agent_received(wire(Hello(version))) == [SendToAgent(wire(Hello(version))), OpenSockets()]
    return board


def with_client(board: Switchboard, client: int = 1) -> Switchboard:
    assert board.client_connected(client) == [SendToClient(client, wire(Hello(3)))]
    assert board.client_received(client, wire(Hello(3))) == []
    return board


def ask(board: Switchboard, service: bytes = b"a.B", ident: bytes = b"SOCKET1") -> int:
    [command] = board.agent_received(wire(TriggerService(b"", b"vault", ident, service)))
    assert isinstance(command, StartErrand)
    return command.errand


def dropped(commands: list[Command], client: int = 1) -> bool:
    """Closed with a reason, and the agent heard nothing."""
    return [type(command) for command in commands] == [Report, CloseClient] and commands[1] == CloseClient(client)


# the agent


@pytest.mark.parametrize("version", [2, 3, 4, 9])
def test_hello_any_split_opens_sockets_with_smaller_version(version: int) -> None:
    board = Switchboard(OWN)
    board.agent_connected()
    commands = [c for byte in wire(Hello(version)) for c in board.agent_received(bytes([byte]))]
    assert commands == [SendToAgent(wire(Hello(min(version, 4)))), OpenSockets()]
    assert board.is_ready


@pytest.mark.parametrize(
    "untrusted_data",
    [
        wire(Hello(4)),
        struct.pack("<II", qrexec.TRIGGER_SERVICE4, 160) + bytes(160),
        struct.pack("<II", qrexec.TRIGGER_SERVICE4, 160 + 65001),
        struct.pack("<II", qrexec.TRIGGER_SERVICE3, 97) + bytes(97),
        struct.pack("<II", qrexec.TRIGGER_SERVICE, 128) + bytes(128),
        struct.pack("<II", qrexec.CONNECTION_TERMINATED, 9) + bytes(9),
        wire(ConnectionTerminated(0, 512)),
        wire(ConnectionTerminated(0, 769)),
        wire(ExecCmdline(0, 513, b"x")),
        struct.pack("<II", 0x999, 0),
    ],
)
def test_agent_that_breaks_the_protocol_ends_the_daemon(untrusted_data: bytes) -> None:
    """MC-11, MC-12."""
    with pytest.raises(RemoteProtocolError):
        ready().agent_received(untrusted_data)


@pytest.mark.parametrize("raw_ident", [b"\1\2\3", b"a\0b", b"x" * 32, b"a/b"])
def test_request_with_a_bad_ident_is_refused_with_it(raw_ident: bytes) -> None:
    raw_ident = raw_ident.ljust(32, b"\0")
    body = bytes(128) + raw_ident + b"a.B\0"
    report, refused = ready().agent_received(struct.pack("<II", qrexec.TRIGGER_SERVICE4, len(body)) + body)
    assert isinstance(report, Report)
    assert refused == SendToAgent(struct.pack("<II", qrexec.SERVICE_REFUSED, 32) + raw_ident)


def test_request_becomes_an_errand_with_its_texts_sanitised() -> None:
    """MC-16, MC-18: what the qube writes reaches policy in the alphabet, and never as who it is."""
    [command] = ready().agent_received(wire(TriggerService(b"oth er", b"$(id)", b"S 1", b"a/B+../x")))
    assert isinstance(command, StartErrand)
    assert command.has_source
    request = command.request
    assert (request.claimed_source, request.target, request.service) == ("oth_er", "__id_", "a_B+.._x")


@pytest.mark.parametrize("version", [2, 3])
def test_request_of_older_version_has_no_source(version: int) -> None:
    board = ready(version)
    body = b"a.B".ljust(64, b"\0") + b"vault".ljust(32, b"\0") + b"S1".ljust(32, b"\0")
    message = struct.pack("<II", qrexec.TRIGGER_SERVICE, 128) + body
    [command] = board.agent_received(message if version == 2 else wire(TriggerService(None, b"vault", b"S1", b"a.B")))
    assert isinstance(command, StartErrand)
    assert not command.has_source
    assert (command.request.service, command.request.target) == ("a.B", "vault")


def test_errand_that_fails_unanswered_is_refused() -> None:
    board = ready()
    errand = ask(board)
    assert board.errand_ended(errand, 126) == [SendToAgent(wire(ServiceRefused(b"SOCKET1")))]


def test_errand_that_ends_well_without_an_answer_is_refused_too() -> None:
    """MC-22: the caller always hears something."""
    board = ready()
    assert board.errand_ended(ask(board), 0) == [SendToAgent(wire(ServiceRefused(b"SOCKET1")))]


def test_requests_over_the_limit_are_refused_at_once() -> None:
    """MC-15."""
    board = ready()
    errands = [ask(board, ident=b"S%d" % number) for number in range(MAX_ERRANDS)]
    message = wire(TriggerService(b"", b"vault", b"more", b"a.B"))
    assert board.agent_received(message)[-1] == SendToAgent(wire(ServiceRefused(b"more")))
    board.errand_ended(errands[0], 126)
    ask(board)


# clients


@pytest.mark.parametrize("kind", [ExecCmdline, JustExec])
def test_command_is_answered_with_a_port_and_passed_on(kind: type[ExecCmdline | JustExec]) -> None:
    board = with_client(ready())
    assert board.client_received(1, wire(kind(0, 0, b"user:true"))) == [
        SendToClient(1, wire(kind(OWN, 513))),
        SendToAgent(wire(kind(0, 513, b"user:true"))),
    ]


def test_command_of_default_user_gets_the_name() -> None:
    board = Switchboard(OWN, b"someone")
    board.agent_connected()
    board.agent_received(wire(Hello(4)))
    with_client(board)
    assert board.client_received(1, wire(ExecCmdline(7, 0, b"DEFAULT:QUBESRPC a.B+ work")))[1] == SendToAgent(
        wire(ExecCmdline(7, 513, b"someone:QUBESRPC a.B+ work"))
    )


def test_command_too_long_with_the_default_user_takes_no_port() -> None:
    board = Switchboard(OWN, b"u" * 100)
    board.agent_connected()
    board.agent_received(wire(Hello(4)))
    with_client(with_client(board), 2)
    assert dropped(board.client_received(1, wire(ExecCmdline(0, 0, b"DEFAULT:" + b"x" * 65000 + b"y" * 500))))
    assert board.client_received(2, wire(ExecCmdline(0, 0, b"u:x")))[0] == SendToClient(2, wire(ExecCmdline(OWN, 513)))


@pytest.mark.parametrize(
    "data",
    [
        wire(Hello(3)),
        wire(ServiceConnect(7, 513, b"nobody")),
        wire(ExecCmdline(0, 512, b"u:x")),
        wire(ExecCmdline(0, 769, b"u:x")),
        struct.pack("<II", qrexec.EXEC_CMDLINE, 8) + bytes(8),
        struct.pack("<II", qrexec.EXEC_CMDLINE, 65536),
        struct.pack("<IIII", qrexec.EXEC_CMDLINE, 9, 0, 0) + b"x",
        struct.pack("<II", 0x999, 0),
    ],
)
def test_bad_request_drops_client_and_agent_hears_nothing(data: bytes) -> None:
    assert dropped(with_client(ready()).client_received(1, data))


def test_data_after_the_request_drops_client() -> None:
    board = with_client(ready())
    board.client_received(1, wire(ExecCmdline(0, 0, b"u:x")))
    assert dropped(board.client_received(1, b"x"))
    assert board.client_received(1, b"y") == []


def test_client_of_old_version_is_dropped() -> None:
    board = ready()
    board.client_connected(1)
    assert dropped(board.client_received(1, wire(Hello(2))))


def test_end_of_call_frees_port_and_tells_client() -> None:
    board = with_client(ready())
    board.client_received(1, wire(ExecCmdline(7, 0, b"u:x")))
    assert board.agent_received(wire(ConnectionTerminated(8, 513))) == []
    assert board.agent_received(wire(ConnectionTerminated(7, 513))) == [CloseClient(1)]
    assert board.agent_received(wire(ConnectionTerminated(7, 513))) == []


def test_client_that_left_is_not_told_and_its_port_stays_taken() -> None:
    board = with_client(with_client(ready()), 2)
    board.client_received(1, wire(ExecCmdline(0, 0, b"u:x")))
    board.client_closed(1)
    assert board.client_received(2, wire(ExecCmdline(0, 0, b"u:x")))[0] == SendToClient(2, wire(ExecCmdline(OWN, 514)))
    assert board.agent_received(wire(ConnectionTerminated(0, 513))) == []


def test_all_ports_taken_drops_client() -> None:
    """MC-15."""
    board = ready()
    for client in range(limits.MAX_CALLS):
        with_client(board, client)
        assert len(board.client_received(client, wire(ExecCmdline(0, 0, b"u:x")))) == 2
    with_client(board, 999)
    assert dropped(board.client_received(999, wire(ExecCmdline(0, 0, b"u:x"))), 999)


# answers to requests


def test_answer_of_another_qube_is_passed_on_once() -> None:
    board = with_client(with_client(ready()), 2)
    errand = ask(board)
    connect = wire(ServiceConnect(7, 600, b"SOCKET1"))
    assert board.client_received(1, connect) == [SendToAgent(connect)]
    assert dropped(board.client_received(2, connect), 2)
    assert board.errand_ended(errand, 0) == []


def test_answer_of_the_host_gets_a_port() -> None:
    board = with_client(ready())
    errand = ask(board)
    assert board.client_received(1, wire(ServiceConnect(0, 0, b"SOCKET1"))) == [
        SendToClient(1, wire(ServiceConnect(OWN, 513, None))),
        SendToAgent(wire(ServiceConnect(0, 513, b"SOCKET1"))),
    ]
    assert [type(c) for c in board.errand_ended(errand, 3)] == [Report]


def test_answer_without_a_port_left_still_ends_in_a_refusal() -> None:
    board = ready()
    for client in range(limits.MAX_CALLS):
        with_client(board, client)
        board.client_received(client, wire(ExecCmdline(0, 0, b"u:x")))
    errand = ask(board)
    with_client(board, 999)
    assert dropped(board.client_received(999, wire(ServiceConnect(0, 0, b"SOCKET1"))), 999)
    assert board.errand_ended(errand, 125) == [SendToAgent(wire(ServiceRefused(b"SOCKET1")))]


def test_answer_with_a_shorter_ident_is_passed_on_as_it_came() -> None:
    board = with_client(ready())
    ask(board)
    message = struct.pack("<IIII", qrexec.SERVICE_CONNECT, 16, 7, 513) + b"SOCKET1\0"
    assert board.client_received(1, message) == [SendToAgent(message)]


# the agent goes away


def test_agent_lost_closes_all_and_forgets_requests_but_no_port() -> None:
    board = with_client(with_client(ready()), 2)
    errand = ask(board)
    board.client_received(1, wire(ExecCmdline(0, 0, b"u:x")))
    commands = board.agent_lost()
    assert commands[0] == RemoveSockets()
    assert set(commands[1:]) == {CloseClient(1), CloseClient(2)}
    assert not board.is_ready
    assert board.errand_ended(errand, 126) == []
    board.agent_connected()
    board.agent_received(wire(Hello(4)))
    with_client(board, 3)
    assert dropped(board.client_received(3, wire(ServiceConnect(7, 600, b"SOCKET1"))), 3)
    with_client(board, 4)
    assert board.client_received(4, wire(ExecCmdline(0, 0, b"u:x")))[0] == SendToClient(4, wire(ExecCmdline(OWN, 514)))


# ports


def test_ports_of_two_qubes_never_meet() -> None:
    lower, higher = Ports(3), Ports(9)
    from_lower = {lower.take(9, 1) for _ in range(128)}
    from_higher = {higher.take(3, 1) for _ in range(128)}
    assert from_lower == set(range(514, 769, 2))
    assert from_higher == set(range(513, 769, 2))
    assert lower.take(9, 1) is None
    assert lower.take(0, 1) == 513


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(513, 768)), max_size=200))
def test_ports_any_order_of_taking_and_freeing_none_is_given_twice(steps: list[tuple[bool, int, int]]) -> None:
    ports, taken = Ports(2), dict[int, int]()
    for takes, domain, port in steps:
        if takes:
            found = ports.take(domain, 1)
            assert found not in taken
            if found is not None:
                taken[found] = domain
        else:
            ports.release(port, domain)
            if taken.get(port) == domain:
                del taken[port]


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_from_agent_and_client_give_commands_or_end_the_agent(from_agent: bytes, from_client: bytes) -> None:
    """MC-12."""
    board = with_client(ready())
    board.client_received(1, from_client)
    try:
        board.agent_received(from_agent)
    except RemoteProtocolError:
        return
