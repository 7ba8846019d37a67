"""Whether the screen is locked, as the desktop tells it on the session bus (MC-31).

Behind a lock nobody can answer, and whoever is in front of it must not. Where there is no bus, or no desktop that
tells, the screen counts as unlocked: the lock itself keeps others away then.
"""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import SLOT, QObject, Slot
from PySide6.QtDBus import QDBusConnection, QDBusMessage, QDBusPendingCallWatcher

SERVICES: tuple[tuple[str, str], ...] = (
    ("org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver"),
    ("org.freedesktop.ScreenSaver", "/ScreenSaver"),
    ("org.gnome.ScreenSaver", "/org/gnome/ScreenSaver"),
)
"""Name on the bus (also of the interface) and path: KDE and others, older KDE, GNOME."""


class LockWatch(QObject):
    def __init__(self, tell: Callable[[bool], None]) -> None:
        super().__init__()
        self._tell = tell
        self._is_locked = False

    def begin(self) -> None:
        bus = QDBusConnection.sessionBus()
        if not bus.isConnected():
            return
        for name, path in SERVICES:
            slot = SLOT("changed(bool)")
            bus.connect(name, path, name, "ActiveChanged", self, slot)  # type: ignore[call-overload] # it wants text
            call = QDBusMessage.createMethodCall(name, path, name, "GetActive")
            call.setAutoStartService(False)
            watcher = QDBusPendingCallWatcher(bus.asyncCall(call), self)
            watcher.finished.connect(self._answered)

    @Slot(bool)
    def changed(self, is_locked: bool) -> None:
        if is_locked != self._is_locked:
            self._is_locked = is_locked
            self._tell(is_locked)

    def _answered(self, watcher: QDBusPendingCallWatcher) -> None:
        """At the start: is it locked now?"""
        reply = watcher.reply()
        watcher.deleteLater()
        if reply.type() is QDBusMessage.MessageType.ReplyMessage and reply.arguments()[:1] == [True]:
            self.changed(True)
