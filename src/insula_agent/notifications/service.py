"""What programs call (Desktop Notifications Specification 1.2); no I/O: messages in, answers and notifications out.

Only texts are offered, and said to be: programs ask first what the desktop can do. Pictures, buttons and sounds that
come all the same are left out. When the user no longer sees a notification the host tells nobody; it is said to have
gone by itself after a while.
"""

from __future__ import annotations

from insula_agent.notifications import wire
from insula_agent.notifications.wire import Message
from insula_proto.notification import MAX_NUMBER, URGENCIES, Notification, notification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = INTERFACE = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
CAPABILITIES = ("body",)
INFORMATION = ("Insula", "Insula", "1", "1.2")
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
INVALID_ARGUMENTS = "org.freedesktop.DBus.Error.InvalidArgs"
EXPIRED, CLOSED = 1, 3
"""Why a notification has gone."""
_NOTIFY = "susssasa{sv}i"
_ARGUMENTS = {
    "Notify": (_NOTIFY, "u"), "CloseNotification": ("u", ""), "GetCapabilities": ("", "as"),
    "GetServerInformation": ("", "ssss"),
}  # fmt: skip
"""Of each method: what it takes and gives."""
_OUT = ' direction="out"'
_NORMAL = 1


def introspection() -> str:
    """What some clients ask first, to know the types (D-Bus Specification, "Introspection Data Format")."""

    def arguments(signature: str, direction: str) -> str:
        return "".join([f'<arg type="{kind}"{direction}/>' for kind in wire.split(signature)])

    methods = "".join(
        [
            f'<method name="{name}">{arguments(taken, "")}{arguments(given, _OUT)}</method>'
            for name, (taken, given) in _ARGUMENTS.items()
        ]
    )
    signal = f'<signal name="NotificationClosed">{arguments("uu", "")}</signal>'
    return f'<node><interface name="{INTERFACE}">{methods}{signal}</interface></node>'


class Service:
    def __init__(self, first_number: int) -> None:
        """``first_number``: where no earlier service of this session has been."""
        self._next = first_number % MAX_NUMBER or 1
        self._serial = 0

    def take(self, message: Message) -> tuple[list[Message], Notification | None]:
        """What to answer, and what to tell the host."""
        if message.kind != wire.CALL:
            return [], None
        interface, member = message.field("interface"), message.field("member")
        calls = {"Notify": self._notify, "CloseNotification": self._close}
        answers: dict[str, tuple[str, tuple[Any, ...]]] = {
            "GetCapabilities": ("as", (list(CAPABILITIES),)),
            "GetServerInformation": ("ssss", INFORMATION),
        }
        if interface == PEER and member == "Ping":
            return self._answer(message), None
        if interface == INTROSPECTABLE and member == "Introspect":
            return self._answer(message, "s", (introspection(),)), None
        if interface in ("", INTERFACE) and member in answers:
            return self._answer(message, *answers[member]), None
        if interface not in ("", INTERFACE) or member not in calls:
            return self._refuse(message, UNKNOWN_METHOD, f"No such method: {member}"), None
        if message.signature != _ARGUMENTS[member][0]:
            return self._refuse(message, INVALID_ARGUMENTS, f"The arguments are {_ARGUMENTS[member][0]}"), None
        return calls[member](message)

    def gone(self, number: int, reason: int) -> Message:
        """The signal for all who listen."""
        return Message(
            wire.SIGNAL,
            self.serial(),
            {"path": PATH, "interface": INTERFACE, "member": "NotificationClosed"},
            "uu",
            (number, reason),
        )

    def serial(self) -> int:
        """Of a message that is sent."""
        self._serial += 1
        return self._serial

    def _notify(self, message: Message) -> tuple[list[Message], Notification]:
        program, replaced, _, summary, body, _, hints, _ = message.body
        number = replaced
        if not number:
            number = self._next
            self._next = number % MAX_NUMBER + 1
        urgency = hints.get("urgency", _NORMAL)
        if type(urgency) is not int or not 0 <= urgency < len(URGENCIES):
            urgency = _NORMAL
        # One without a word would take away what it replaces.
        told = notification(number, URGENCIES[urgency], program, summary or program or " ", body)
        return self._answer(message, "u", (number,)), told

    def _close(self, message: Message) -> tuple[list[Message], Notification]:
        (number,) = message.body
        return [*self._answer(message), self.gone(number, CLOSED)], notification(number, URGENCIES[_NORMAL], "", "", "")

    def _answer(self, message: Message, signature: str = "", body: tuple[Any, ...] = ()) -> list[Message]:
        return self._reply(message, wire.RETURN, {}, signature, body)

    def _refuse(self, message: Message, error: str, why: str) -> list[Message]:
        return self._reply(message, wire.ERROR, {"error_name": error}, "s", (why,))

    def _reply(
        self, message: Message, kind: int, fields: dict[str, Any], signature: str, body: tuple[Any, ...]
    ) -> list[Message]:
        if message.flags & wire.NO_REPLY_EXPECTED:
            return []
        whose = {"reply_serial": message.serial, "destination": message.field("sender")}
        return [Message(kind, self.serial(), {**fields, **whose}, signature, body)]
