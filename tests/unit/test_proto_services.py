from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto.services import (
    Executable,
    ServiceBroken,
    ServiceCall,
    ServiceNotFound,
    SocketService,
    TcpService,
    find_service,
    find_settings,
    locate,
    parse_call,
    parse_settings,
    tcp_service,
)


def call(text: bytes) -> ServiceCall:
    parsed = parse_call(b"QUBESRPC " + text)
    assert parsed is not None
    return parsed


def place(folder: Path, name: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("command", [b"ls", b"", b"QUBESRPCx y", b"qubesrpc a b", b" QUBESRPC a b", b"nogui:ls"])
def test_parse_call_shell_command_is_none(command: bytes) -> None:
    assert parse_call(command) is None


def test_parse_call_with_argument_and_target_has_environment() -> None:
    parsed = parse_call(b"nogui:QUBESRPC a.B+c+d work name dom0")
    assert parsed is not None
    assert parsed.environment(42) == {
        "QREXEC_REMOTE_DOMAIN": "work",
        "QREXEC_SERVICE_FULL_NAME": "a.B+c+d",
        "QREXEC_SERVICE_ARGUMENT": "c+d",
        "QREXEC_REQUESTED_TARGET_TYPE": "name",
        "QREXEC_REQUESTED_TARGET": "dom0",
        "QREXEC_AGENT_PID": "42",
    }


def test_parse_call_plus_without_argument_sets_empty_argument() -> None:
    assert call(b"a.B+ work").environment(1)["QREXEC_SERVICE_ARGUMENT"] == ""
    assert "QREXEC_SERVICE_ARGUMENT" not in call(b"a.B work").environment(1)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"a", b"a ", b" a b", b"a  b", b"a b c", b"a b name", b"a b other c", b"a b name c d",
        b"a/b w", b"../x w", b"a$b w", b"a`b w", b"a\nb w", b'a"b w', b"a'b w", "ä w".encode(), b"+a w", b"a;b w",
    ],
)  # fmt: skip
def test_parse_call_outside_grammar_refused(text: bytes) -> None:
    """MC-16."""
    with pytest.raises(ServiceBroken):
        parse_call(b"QUBESRPC " + text)


@given(st.binary(max_size=60))
def test_parse_call_any_bytes_name_never_leaves_its_folder(data: bytes) -> None:
    """MC-16."""
    try:
        parsed = parse_call(b"QUBESRPC " + data)
    except ServiceBroken:
        return
    assert parsed is not None
    assert "/" not in parsed.full_name


def test_find_service_argument_in_any_folder_before_plain_name(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    place(first, "a.B")
    with_argument = place(second, "a.B+c")
    empty_argument = place(second, "a.B+")
    path = f"{first}:{second}"
    assert find_service(call(b"a.B+c w"), path) == str(with_argument)
    assert find_service(call(b"a.B w"), path) == str(empty_argument)
    assert find_service(call(b"a.B+x w"), path) == str(first / "a.B")


def test_find_service_absent_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ServiceNotFound):
        find_service(call(b"a.B w"), str(tmp_path))


def test_find_service_name_over_255_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ServiceNotFound):
        find_service(call(b"a" * 256 + b" w"), str(tmp_path))


def test_find_service_long_argument_falls_back_to_name(tmp_path: Path) -> None:
    assert find_service(call(b"a.B+" + b"x" * 300 + b" w"), str(place(tmp_path, "a.B").parent)) == str(tmp_path / "a.B")


@pytest.mark.parametrize("name", [b".", b"..", b"folder"])
def test_find_service_not_a_file_is_broken(tmp_path: Path, name: bytes) -> None:
    """MC-16."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ServiceBroken):
        find_service(call(name + b" w"), str(tmp_path))


def test_find_service_not_executable_is_broken(tmp_path: Path) -> None:
    place(tmp_path, "a.B", 0o644)
    with pytest.raises(ServiceBroken):
        find_service(call(b"a.B w"), str(tmp_path))


def test_find_service_symlink_loop_is_broken_dangling_is_absent(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ServiceBroken):
        find_service(call(b"loop w"), str(tmp_path))
    with pytest.raises(ServiceNotFound):
        find_service(call(b"gone w"), str(tmp_path))


def test_find_settings_absent_gives_defaults(tmp_path: Path) -> None:
    settings = find_settings(call(b"a.B w"), str(tmp_path))
    assert settings.force_user is None
    assert not settings.wait_for_session


def test_find_settings_folder_or_not_text_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.B").mkdir()
    (tmp_path / "a.C").write_bytes(b"\xff\xfe")
    for name in (b"a.B", b"a.C"):
        with pytest.raises(ServiceBroken):
            find_settings(call(name + b" w"), str(tmp_path))


def test_parse_settings_all_kinds_of_values() -> None:
    settings = parse_settings("# comment\n\nforce-user = 'root'\nwait-for-session=1\nunknown=true\n")
    assert settings.force_user == "root"
    assert settings.wait_for_session


@pytest.mark.parametrize(
    "text",
    [
        "force-user=root", 'force-user="root"', "force-user='a'b'", "force-user='", "force-user=1", "force-user",
        "=1", " force-user='a'", "force-user='a'\nforce-user='a'", "wait-for-session=2", "wait-for-session='x'",
        "wait-for-session=01", "wait-for-session=+1", "[section]",
    ],
)  # fmt: skip
def test_parse_settings_outside_format_refused(text: str) -> None:
    """A faulty line must not silently lose its restriction."""
    with pytest.raises(ServiceBroken):
        parse_settings(text)


def test_parse_settings_of_a_socket() -> None:
    settings = parse_settings(
        "skip-service-descriptor = true # why\r\nexit-on-client-eof = true\nexit-on-service-eof=false\n"
    )
    assert settings.skip_descriptor
    assert settings.exit_on_client_eof
    assert not settings.exit_on_service_eof
    assert parse_settings("force-user = 'a#b'  # with a comment").force_user == "a#b"


@pytest.mark.parametrize("name", ["skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof"])
def test_parse_settings_of_a_socket_with_a_user_or_a_number_refused(name: str) -> None:
    for text in (f"{name}=true\nforce-user='root'", f"{name}=1", f"{name}='true'", f"{name}=truee", f"{name}=true x"):
        with pytest.raises(ServiceBroken):
            parse_settings(text)


@given(st.text(max_size=80))
def test_parse_settings_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ServiceBroken):
        parse_settings(text)


# kinds of services


def test_descriptor_is_the_call_without_its_first_word() -> None:
    assert call(b"a.B+c work name dom0").descriptor == b"a.B+c work name dom0\0"
    assert call(b"a.B work").descriptor == b"a.B work\0"


def test_locate_finds_program_socket_and_link(tmp_path: Path) -> None:
    place(tmp_path, "a.Program")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.Socket"))
        (tmp_path / "a.Link").symlink_to("a.Socket")
        (tmp_path / "a.Tcp").symlink_to("/dev/tcp/127.0.0.1/80")
        path = str(tmp_path)
        assert locate(call(b"a.Program w"), path) == Executable(f"{path}/a.Program")
        assert locate(call(b"a.Socket+x w"), path) == SocketService(f"{path}/a.Socket")
        assert locate(call(b"a.Link w"), path) == SocketService(f"{path}/a.Link")
        assert locate(call(b"a.Tcp w"), path) == TcpService("127.0.0.1", 80)
        with pytest.raises(ServiceBroken):
            find_service(call(b"a.Socket w"), path)


@pytest.mark.parametrize(
    ("link", "argument", "expected"),
    [
        ("/dev/tcp/10.0.0.1/443", b"", TcpService("10.0.0.1", 443)),
        ("/dev/tcp/10.0.0.1/443", b"+", TcpService("10.0.0.1", 443)),
        ("/dev/tcp/10.0.0.1", b"+8080", TcpService("10.0.0.1", 8080)),
        ("/dev/tcp", b"+10.0.0.1+65535", TcpService("10.0.0.1", 65535)),
        ("/dev/tcp", b"+fd00++1+22", TcpService("fd00::1", 22)),
    ],
)
def test_tcp_service_missing_parts_come_from_the_argument(link: str, argument: bytes, expected: TcpService) -> None:
    assert tcp_service(call(b"a.B" + argument + b" w"), link) == expected


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        ("/dev/tcp/10.0.0.1/443", b"+443"), ("/dev/tcp/10.0.0.1/443/", b""), ("/dev/tcp/", b"+1"), ("/dev/tcp//1", b""),
        ("/dev/tcp/10.0.0.1", b""), ("/dev/tcp/10.0.0.1", b"+"), ("/dev/tcp/10.0.0.1/", b""), ("/dev/tcp", b""),
        ("/dev/tcp", b"+443"), ("/dev/tcp", b"+a_b+443"), ("/dev/tcp", b"++443"), ("/dev/tcp/h", b"+0"),
        ("/dev/tcp/h", b"+080"), ("/dev/tcp/h", b"+65536"), ("/dev/tcp/h", b"+-1"), ("/dev/tcp/h", b"+1+2"),
        ("/dev/tcp/h/80 ", b""),
    ],
)  # fmt: skip
def test_tcp_service_too_much_or_too_little_is_broken(link: str, argument: bytes) -> None:
    with pytest.raises(ServiceBroken):
        tcp_service(call(b"a.B" + argument + b" w"), link)
