"""Finding a service and its settings (reference: qrexec, §5): pure functions over a search path.

A service is an executable. Of what the published agent also knows, unix sockets and ``/dev/tcp`` links are recognised
and refused as a problem (125), because nothing calls them before qubes can call each other.
"""

from __future__ import annotations

import errno
import os
import stat

from insula_proto import limits
from insula_proto.qrexec import SERVICE_ALPHABET

DEFAULT_SERVICE_PATH = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
DEFAULT_CONFIG_PATH = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"

MAX_CONFIG_SIZE = 65536
_PREFIX = b"QUBESRPC "
_INTEGER_DIGITS = 10


class ServiceNotFound(Exception):
    """No such service: exit code 127."""


class ServiceBroken(Exception):
    """The service, its settings or the call is faulty: exit code 125."""


class ServiceCall:
    """A parsed ``QUBESRPC`` command line."""

    __slots__ = ("argument", "full_name", "name", "source", "target", "target_kind")

    def __init__(self, full_name: str, source: str, target_kind: str, target: str) -> None:
        self.full_name = full_name
        """As called, with ``+ARGUMENT`` if there was one."""
        self.name, plus, argument = full_name.partition("+")
        self.argument: str | None = argument if plus else None
        self.source = source
        self.target_kind = target_kind
        self.target = target

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
    texts = [word.decode("utf-8", "replace") for word in words]
    return ServiceCall(texts[0], texts[1], texts[2] if len(words) == 4 else "", texts[3] if len(words) == 4 else "")


def _candidates(call: ServiceCall, search_path: str) -> list[str]:
    """Every place to look, in order: with the argument in all folders, then without it."""
    names = [call.full_name if call.argument is not None else call.full_name + "+", call.name]
    folders = [folder for folder in search_path.split(":") if folder]
    return [f"{folder}/{name}" for name in names if len(name) <= limits.QREXEC_MAX_SERVICE_NAME for folder in folders]


def find_service(call: ServiceCall, search_path: str) -> str:
    """Return the path of the executable. :raise ServiceNotFound, ServiceBroken:"""
    for path in _candidates(call, search_path):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise ServiceBroken(f"{path}: {error}") from error
        if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
            raise ServiceBroken(f"{path} is not an executable file")
        return path
    raise ServiceNotFound(call.full_name)


# --- settings ------------------------------------------------------------------------------------------------------


class Settings:
    """``rpc-config`` of a service. ``wait-for-session`` is read and has no effect: there are no login sessions yet."""

    __slots__ = ("force_user", "wait_for_session")

    def __init__(self, force_user: str | None = None, *, wait_for_session: bool = False) -> None:
        self.force_user = force_user
        self.wait_for_session = wait_for_session


_BOOLEANS = ("wait-for-session", "skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof")


def _parse_value(text: str) -> str | bool | int:
    if len(text) >= 2 and text[0] == text[-1] == "'" and "'" not in text[1:-1]:
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if text.isascii() and text.isdigit() and len(text) <= _INTEGER_DIGITS and (text == "0" or text[0] != "0"):
        return int(text)
    raise ServiceBroken(f"not a value: {text!r}")


def parse_settings(text: str) -> Settings:
    """Read the TOML subset of ``rpc-config``; unknown keys are ignored. :raise ServiceBroken:"""
    values: dict[str, str | bool | int] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        name = key.rstrip(" \t")
        if not equals or not name or name != name.strip() or name in values:
            raise ServiceBroken(f"not a setting: {line!r}")
        values[name] = _parse_value(value.strip(" \t"))
    for name in _BOOLEANS:
        if values.get(name, False) not in (True, False):
            raise ServiceBroken(f"{name} is true or false")
    force_user = values.get("force-user")
    if force_user is not None and not isinstance(force_user, str):
        raise ServiceBroken("force-user is a string")
    return Settings(force_user, wait_for_session=bool(values.get("wait-for-session", False)))


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
