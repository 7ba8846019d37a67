"""Finding a service and its settings (reference: qrexec, §5): functions of a search path and the files in it.

A service is an executable, a unix socket, or a link to ``/dev/tcp``, which stands for a TCP connection.
"""

from __future__ import annotations

import errno
import os
import stat

from insula_proto import limits
from insula_proto.qrexec import SERVICE_ALPHABET
from insula_proto.value import Value

DEFAULT_SERVICE_PATH = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
DEFAULT_CONFIG_PATH = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"

MAX_CONFIG_SIZE = 65536
_TCP = "/dev/tcp"
_MAX_PORT = 65535
_PREFIX = b"QUBESRPC "
_INTEGER_DIGITS = 10


class ServiceNotFound(Exception):
    """No such service: exit code 127."""


class ServiceBroken(Exception):
    """The service, its settings or the call is faulty: exit code 125."""


class ServiceCall:
    """A parsed ``QUBESRPC`` command line."""

    __slots__ = ("argument", "descriptor", "full_name", "name", "source", "target", "target_kind")

    def __init__(self, full_name: str, source: str, target_kind: str, target: str) -> None:
        self.full_name = full_name
        """As called, with ``+ARGUMENT`` if there was one."""
        self.name, plus, argument = full_name.partition("+")
        self.argument: str | None = argument if plus else None
        self.source = source
        self.target_kind = target_kind
        self.target = target
        words = [full_name, source] if not target_kind else [full_name, source, target_kind, target]
        self.descriptor = " ".join(words).encode("utf-8", "surrogateescape") + b"\0"
        """What a socket is told first: who calls what."""

    def environment(self, agent_pid: int) -> dict[str, str]:
        variables = {
            "QREXEC_REMOTE_DOMAIN": self.source,
            "QREXEC_SERVICE_FULL_NAME": self.full_name,
            "QREXEC_REQUESTED_TARGET_TYPE": self.target_kind,
            "QREXEC_AGENT_PID": str(agent_pid),
        }
        if self.argument is not None:
            variables["QREXEC_SERVICE_ARGUMENT"] = self.argument
        if self.target_kind == "name":
            variables["QREXEC_REQUESTED_TARGET"] = self.target
        elif self.target_kind == "keyword":
            variables["QREXEC_REQUESTED_TARGET_KEYWORD"] = self.target
        return variables


def parse_call(command: bytes) -> ServiceCall | None:
    """Return the service call a command line makes; None if it is a shell command.

    :raise ServiceBroken: it begins like a call and is none, or its name has a letter no service has (MC-16).
    """
    if command.startswith(b"nogui:"):
        command = command[len(b"nogui:") :]
    if not command.startswith(_PREFIX):
        return None
    words = command[len(_PREFIX) :].split(b" ")
    if len(words) not in (2, 4) or not all(words):
        raise ServiceBroken("a service call has a name and a source, and maybe a target")
    if len(words) == 4 and words[2] not in (b"name", b"keyword"):
        raise ServiceBroken("a target is a name or a keyword")
    if not SERVICE_ALPHABET.issuperset(words[0]) or words[0].startswith(b"+"):
        raise ServiceBroken(f"not a service name: {words[0]!r}")
    texts = [word.decode("utf-8", "surrogateescape") for word in words]
    return ServiceCall(texts[0], texts[1], texts[2] if len(words) == 4 else "", texts[3] if len(words) == 4 else "")


def _candidates(call: ServiceCall, search_path: str) -> list[str]:
    """Every place to look, in order: with the argument in all folders, then without it."""
    names = [call.full_name if call.argument is not None else call.full_name + "+", call.name]
    folders = [folder for folder in search_path.split(":") if folder]
    return [f"{folder}/{name}" for name in names if len(name) <= limits.QREXEC_MAX_SERVICE_NAME for folder in folders]


class Executable(Value):
    __slots__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        self._fill(path=path)


class SocketService(Value):
    """The path may be too long for a socket's address: connect to it in its folder."""

    __slots__ = ("path",)
    path: str

    def __init__(self, path: str) -> None:
        self._fill(path=path)


class TcpService(Value):
    """``host`` is to be a numeric address, which is for the system to say: names are not looked up."""

    __slots__ = ("host", "port")
    host: str
    port: int

    def __init__(self, host: str, port: int) -> None:
        self._fill(host=host, port=port)


def locate(call: ServiceCall, search_path: str) -> Executable | SocketService | TcpService:
    """Return what serves a call. :raise ServiceNotFound, ServiceBroken:"""
    for path in _candidates(call, search_path):
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                link = os.readlink(path)
                if link == _TCP or link.startswith(_TCP + "/"):
                    return tcp_service(call, link)
                mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise ServiceBroken(f"{path}: {error}") from error
        if stat.S_ISSOCK(mode):
            return SocketService(path)
        if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
            raise ServiceBroken(f"{path} is not an executable file")
        return Executable(path)
    raise ServiceNotFound(call.full_name)


def find_service(call: ServiceCall, search_path: str) -> str:
    """Return the path of an executable service. :raise ServiceNotFound, ServiceBroken: it is of another kind."""
    found = locate(call, search_path)
    if not isinstance(found, Executable):
        raise ServiceBroken(f"{call.full_name} is served by a socket")
    return found.path


def tcp_service(call: ServiceCall, link: str) -> TcpService:
    """What ``/dev/tcp[/HOST[/PORT]]`` and the argument together name. :raise ServiceBroken:"""
    rest = link[len(_TCP) + 1 :]
    host, slash, port = rest.partition("/")
    argument = call.argument or ""
    if link != _TCP and not host:
        raise ServiceBroken(f"{link} names no host")
    if slash:
        if argument:
            raise ServiceBroken(f"{call.full_name}: {link} takes no argument")
    elif host:
        port = argument
    else:
        host, plus, port = argument.rpartition("+")
        if not plus or "_" in host:
            raise ServiceBroken(f"{call.full_name}: the argument is no host and port")
        host = host.replace("+", ":")
    if not host or not _is_port(port):
        raise ServiceBroken(f"{call.full_name}: no host, or no port from 1 to {_MAX_PORT}")
    return TcpService(host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and text[0] != "0" and len(text) <= 5 and int(text) <= _MAX_PORT


# --- settings ------------------------------------------------------------------------------------------------------


class Settings(Value):
    """``rpc-config`` of a service. All but the first two are for sockets."""

    __slots__ = ("exit_on_client_eof", "exit_on_service_eof", "force_user", "skip_descriptor", "wait_for_session")
    force_user: str | None
    wait_for_session: bool
    skip_descriptor: bool
    exit_on_client_eof: bool
    exit_on_service_eof: bool

    def __init__(
        self,
        force_user: str | None = None,
        *,
        wait_for_session: bool = False,
        skip_descriptor: bool = False,
        exit_on_client_eof: bool = False,
        exit_on_service_eof: bool = False,
    ) -> None:
        self._fill(
            force_user=force_user,
            wait_for_session=wait_for_session,
            skip_descriptor=skip_descriptor,
            exit_on_client_eof=exit_on_client_eof,
            exit_on_service_eof=exit_on_service_eof,
        )


_FOR_SOCKETS = ("skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof")
_KEY_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_KEY_LETTERS = _KEY_FIRST | frozenset("0123456789.-_")
_BLANKS = " \t"


def _parse_value(text: str) -> str | bool | int:
    """A value and, behind it, nothing or a comment."""
    if text.startswith("'"):
        value, quote, rest = text[1:].partition("'")
        if not quote or text.startswith("'''"):
            raise ServiceBroken(f"not a value: {text!r}")
        _require_end(rest, text)
        return value
    word = text.partition("#")[0].rstrip(_BLANKS)
    if word in ("true", "false"):
        return word == "true"
    if word.isascii() and word.isdigit() and len(word) <= _INTEGER_DIGITS and (word == "0" or word[0] != "0"):
        return int(word)
    raise ServiceBroken(f"not a value: {text!r}")


def _require_end(rest: str, text: str) -> None:
    rest = rest.lstrip(_BLANKS)
    if rest and not rest.startswith("#"):
        raise ServiceBroken(f"something behind the value: {text!r}")


def parse_settings(text: str) -> Settings:
    """Read the TOML subset of ``rpc-config``; unknown keys are ignored. :raise ServiceBroken:"""
    values: dict[str, str | bool | int] = {}
    for line in text.split("\n"):
        line = line[:-1] if line.endswith("\r") else line  # noqa: PLW2901
        if not line.strip(_BLANKS) or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        name = key.rstrip(_BLANKS)
        if not equals or name[:1] not in _KEY_FIRST or not _KEY_LETTERS.issuperset(name) or name in values:
            raise ServiceBroken(f"not a setting: {line!r}")
        values[name] = _parse_value(value.strip(_BLANKS))
    flags = {name: _flag(values, name) for name in ("wait-for-session", *_FOR_SOCKETS)}
    force_user = values.get("force-user")
    if force_user is not None and not isinstance(force_user, str):
        raise ServiceBroken("force-user is a string")
    if force_user is not None and any(flags[name] for name in _FOR_SOCKETS):
        raise ServiceBroken("force-user is for executables, and settings for sockets stand beside it")
    return Settings(
        force_user,
        wait_for_session=flags["wait-for-session"],
        skip_descriptor=flags["skip-service-descriptor"],
        exit_on_client_eof=flags["exit-on-client-eof"],
        exit_on_service_eof=flags["exit-on-service-eof"],
    )


def _flag(values: dict[str, str | bool | int], name: str) -> bool:
    """Only ``wait-for-session`` may be 0 or 1 as well, for files of old versions."""
    value = values.get(name, False)
    if name == "wait-for-session" and value in (0, 1):
        return bool(value)
    if not isinstance(value, bool):
        raise ServiceBroken(f"{name} is true or false")
    return value


def find_settings(call: ServiceCall, search_path: str) -> Settings:
    """Return the settings of a service, defaults if it has none. :raise ServiceBroken:"""
    for path in _candidates(call, search_path):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(MAX_CONFIG_SIZE + 1)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ServiceBroken(f"{path}: {error}") from error
        if len(text) > MAX_CONFIG_SIZE:
            raise ServiceBroken(f"{path} is too long")
        return parse_settings(text)
    return Settings()
