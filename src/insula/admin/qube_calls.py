"""The Admin API for qubes: calls of ``admin.*`` that policy allowed, over RPC (admin-api §1).

Same methods, checks and wire format as on the socket; who calls is the qube the call came from. What a caller sees of
the *system* is what policy would let it see of each qube: lists are filtered by ``admin.vm.List`` on every qube, events
by ``admin.Events+EVENT`` on the qube they are about. Methods of our own (``insula.…``, scope I) are for no qube. The
content of a volume (``admin.vm.volume.Import…``) goes into the volume as it comes, unread.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable

from insula.admin.api import METHODS
from insula.admin.call import Answer, Call, Stream, Upload
from insula.admin.default_policy import is_for_qubes
from insula.admin.dispatch import Dispatcher, PublishedError, published_error
from insula.events.bus import Overrun
from insula.events.types import Event
from insula.model.errors import ProtocolError
from insula.model.names import ADMIN_NAME
from insula.policy.decisions import Request
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices
from insula_proto import admin
from insula_proto.admin import EventRecord, RequestHead

LIST = "admin.vm.List"
EVENTS = "admin.Events"

EXIT_SILENT = 1

Judge = Callable[[Request], Awaitable[bool]]
"""Whether policy allows a call to the host now, asking nobody."""

_NOT_IN_ARGUMENT = re.compile(r"[^A-Za-z0-9_.-]")

log = logging.getLogger("insula.admin")


class QubeCalls:
    """Answers for qubes what :class:`insula.admin.server.AdminServer` answers for the host's own programs."""

    def __init__(self, dispatcher: Dispatcher, may: Judge) -> None:
        self._dispatcher = dispatcher
        self._may = may

    def services(self) -> HostServices:
        """One for each method a qube can be allowed."""
        whole, stream = HostService(self.answer), HostService(self.answer, is_stream=True)
        return {
            method.name: stream if isinstance(method.action, Upload) else whole
            for method in METHODS.values()
            if is_for_qubes(method)
        }

    async def answer(self, call: HostCall) -> HostReply:
        head = RequestHead(call.service, call.argument, call.caller, call.destination)
        try:
            source = self._dispatcher.find_qube(call.caller)
            is_upload = isinstance(METHODS[call.service].action, Upload)
            method, checked = self._dispatcher.check(source, head, None if is_upload else call.untrusted_payload)
            if not is_for_qubes(method):
                raise ProtocolError(f"No such method: {method.name}")
            match method.action:
                case Answer(run):
                    result = await run(self._dispatcher.context, checked)
                    if method.name == LIST and checked.dest.is_admin:
                        result = await self._visible(checked, result)
                    return HostReply(admin.encode_success(result.encode()))
                case Stream(run_stream):
                    return HostReply(self._encoded(checked, run_stream(self._dispatcher.context, checked)))
                case Upload(run_upload):
                    result = await run_upload(self._dispatcher.context, checked, call.untrusted_stream)
                    return HostReply(admin.encode_success(result.encode()))
        except TimeoutError:
            log.info("%s of %s: the data did not come", call.service, call.caller)
            return HostReply(code=EXIT_SILENT, last_words="The data did not come\n")
        except PublishedError as error:
            type_name, message = published_error(error)
            log.info("answered %s to %s: %s", type_name, call.caller, message)
            return HostReply(admin.encode_failure(type_name, message))

    async def _visible(self, call: Call, listed: str) -> str:
        """The lines of qubes that the caller may list."""
        lines = []
        for line in listed.splitlines(keepends=True):
            name = line.partition(" ")[0]
            if name == call.source.name or await self._may(Request(LIST, "+", call.source.name, name)):
                lines.append(line)
        return "".join(lines)

    async def _encoded(self, call: Call, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        started = False
        try:
            async for event in events:
                if not started or await self._may_hear(call, event):
                    started = True
                    yield admin.encode_event(EventRecord(event.subject, event.name, event.kwargs))
        except Overrun:
            log.warning("%s was too slow for its events; their stream ends", call.source.name)
        except PublishedError as error:
            if not started:
                yield admin.encode_failure(*published_error(error))
            else:
                log.warning("events for %s ended: %s", call.source.name, error)
        finally:
            await events.aclose()

    async def _may_hear(self, call: Call, event: Event) -> bool:
        # The argument's alphabet has no colon; the published system writes it as an underscore.
        argument = _NOT_IN_ARGUMENT.sub("_", event.name)
        return await self._may(Request(EVENTS, f"+{argument}", call.source.name, event.subject or ADMIN_NAME))
