"""What programs in qubes tell the user (``insula.Notify``): taken apart, made fit to be shown, handed on.

Who tells it is what the host says, never the text: a qube cannot speak for another one (MC-50). What is no printable
character, or of another script than ASCII where the qube's titles may not have it, is shown as ``_``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from insula.admin.call import Context
from insula.gui import titles
from insula.gui.features import configure
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import view
from insula.policy.agent import MAX_LINES, Notification
from insula.rpc.ask import CannotAsk
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices
from insula_proto import notification
from insula_proto.errors import RemoteProtocolError

EXIT_BAD_REQUEST = 1
URGENT = "critical"


class Notifications:
    def __init__(self, context: Context, show: Callable[[Notification], Awaitable[None]]) -> None:
        """``show``: to the user; raises :class:`insula.rpc.ask.CannotAsk`."""
        self._context = context
        self._show = show

    def services(self) -> HostServices:
        return {"insula.Notify": HostService(self.notify, max_payload=notification.MAX_SIZE)}

    async def notify(self, call: HostCall) -> HostReply:
        system = self._context.store.system
        caller = system.qubes.get(QubeName(call.caller))
        if caller is None:
            return HostReply(code=EXIT_BAD_REQUEST, last_words="The qube has gone\n")
        here = view(system, caller)
        if here.vm("guivm") != ADMIN_NAME:
            return HostReply(code=EXIT_BAD_REQUEST, last_words="The qube has no desktop here\n")
        try:
            told = notification.decode(call.untrusted_payload)
        except RemoteProtocolError as error:
            return HostReply(code=EXIT_BAD_REQUEST, last_words=f"{error}\n")
        settings, _ = configure(caller.name, 0, here.feature_from_template, system.get(ADMIN_NAME).features.get)
        title, text = shown_texts(told, allows_utf8=settings.allows_utf8)
        shown = Notification(caller.name, here.text("icon"), told.number, told.urgency == URGENT, title, text)
        try:
            await self._show(shown)
        except CannotAsk as error:
            return HostReply(code=EXIT_BAD_REQUEST, last_words=f"It is not shown: {error}\n")
        return HostReply()


def shown_texts(told: notification.Notification, *, allows_utf8: bool) -> tuple[str, str]:
    """One line, with the program's name where that says something more, and a few more lines."""

    def shown(untrusted_text: bytes) -> str:
        return titles.title(untrusted_text, allows_utf8=allows_utf8)

    program = shown(told.untrusted_program.replace(b"\n", b" "))
    title = shown(told.untrusted_summary.replace(b"\n", b" "))
    if program and title and program.lower() not in title.lower():
        title = f"{title} ({program})"
    untrusted_lines = [line for line in told.untrusted_body.replace(b"\t", b" ").split(b"\n") if line.strip()]
    lines = [shown(line) for line in untrusted_lines[:MAX_LINES]]
    if len(untrusted_lines) > MAX_LINES:
        lines[-1] += "..."
    return title, "\n".join(lines)
