"""Calls that read and change the policy, ``policy.*`` (qrexec §7, "Policy admin"), for qubes whom policy allows them.

The answer is text; a refusal is exit code 1 and ``ExceptionName message`` on stderr. Reading and writing files is done
in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from insula.model.names import ADMIN_NAME
from insula.policy.errors import PolicyAdminException, PolicyAdminProtocolException
from insula.policy.store import PolicyStore
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices

EXIT_REFUSED = 1
MAX_TOKEN = 80
"""Bytes of the first line of a change: ``sha256:`` and 64 digits are 71."""


class PolicyCalls:
    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    def services(self) -> HostServices:
        """By name."""
        plain: dict[str, Callable[[HostCall, bool], bytes]] = {
            "List": self._list,
            "Get": self._get,
            "Replace": self._replace,
            "Remove": self._remove,
        }
        found = {
            f"policy.{infix}{verb}": _service(run, is_include=bool(infix))
            for verb, run in plain.items()
            for infix in ("", "include.")
        }
        return {
            **found,
            "policy.GetFiles": _service(self._files_for, is_include=False),
            "policy.RegisterArgument": _service(self._register, is_include=False),
        }

    def _list(self, call: HostCall, include: bool) -> bytes:
        _require(call, argument=False, payload=False)
        return "".join(f"{name}\n" for name in self._store.names(include=include)).encode()

    def _get(self, call: HostCall, include: bool) -> bytes:
        _require(call, argument=True, payload=False)
        token, content = self._store.get(call.argument, include=include)
        return token.encode() + b"\n" + content

    def _replace(self, call: HostCall, include: bool) -> bytes:
        _require(call, argument=True, payload=True)
        untrusted_token, end, untrusted_content = call.untrusted_payload.partition(b"\n")
        if not end:
            raise PolicyAdminProtocolException("the payload is a token, a newline, and the content")
        self._store.replace(call.argument, untrusted_content, _token(untrusted_token), include=include)
        return b""

    def _remove(self, call: HostCall, include: bool) -> bytes:
        _require(call, argument=True, payload=True)
        self._store.remove(call.argument, _token(call.untrusted_payload), include=include)
        return b""

    def _files_for(self, call: HostCall, include: bool) -> bytes:
        del include
        _require(call, argument=True, payload=False)
        return "".join(f"{name}\n" for name in self._store.files_for(call.argument)).encode()

    def _register(self, call: HostCall, include: bool) -> bytes:
        del include
        _require(call, argument=True, payload=True)
        if call.destination == ADMIN_NAME:
            raise PolicyAdminProtocolException("an argument is registered for a qube that is the target of this call")
        try:
            argument = call.untrusted_payload.decode("ascii")
        except UnicodeDecodeError:
            raise PolicyAdminProtocolException("an argument is ASCII") from None
        self._store.register_argument(call.argument, argument, call.caller, call.destination)
        return b""


def _service(run: Callable[[HostCall, bool], bytes], *, is_include: bool) -> HostService:
    async def answer(call: HostCall) -> HostReply:
        try:
            return HostReply(await asyncio.to_thread(run, call, is_include))
        except PolicyAdminException as error:
            return HostReply(code=EXIT_REFUSED, last_words=f"{type(error).__name__} {error}\n")

    return HostService(answer)


def _require(call: HostCall, *, argument: bool, payload: bool) -> None:
    for what, given, wanted in (
        ("argument", bool(call.argument), argument),
        ("payload", bool(call.untrusted_payload), payload),
    ):
        if given != wanted:
            raise PolicyAdminProtocolException(f"{call.service} {'needs' if wanted else 'takes no'} {what}")


def _token(untrusted_token: bytes) -> str:
    try:
        return untrusted_token[: MAX_TOKEN + 1].decode("ascii")
    except UnicodeDecodeError:
        raise PolicyAdminProtocolException("a token is ASCII") from None
