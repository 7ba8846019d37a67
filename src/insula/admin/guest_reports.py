"""What every qube may ask of or tell the host: the time, what it supports, its applications, whether it has updates
(agent-services §1, §5, §6, §7).

What a qube tells is its own claim, kept as such: it changes its own features, or its template's, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from insula.admin.call import Context
from insula.model.applications import MAX_LIST, parse_applications
from insula.model.errors import ProtocolError, QubesException
from insula.model.feature_requests import apply_request, parse_request, parse_tools
from insula.model.names import UPDATES, QubeName
from insula.model.properties import view
from insula.model.qube import Qube
from insula.model.state import PowerState
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices

LAST_CHECK = "last-updates-check"
LAST_UPDATE = "last-update"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
MAX_COUNT = 16
"""Bytes of a number of updates."""
NANOSECONDS = "nanoseconds"
EXIT_BAD_REQUEST = 1

log = logging.getLogger("insula.admin")


def now() -> datetime:
    return datetime.now(UTC)


class GuestReports:
    def __init__(self, context: Context, clock: Callable[[], datetime] = now) -> None:
        self._context = context
        self._clock = clock

    def services(self) -> HostServices:
        return {
            "qubes.GetDate": HostService(self.get_date, max_payload=0),
            "qubes.FeaturesRequest": HostService(self.features_request, max_payload=0),
            "qubes.NotifyTools": HostService(self.notify_tools, max_payload=0),
            "qubes.NotifyUpdates": HostService(self.notify_updates, max_payload=MAX_COUNT),
            "qubes.SyncAppMenus": HostService(self.sync_applications, is_stream=True),
            "insula.ShowWindows": HostService(self.show_windows, max_payload=0),
        }

    async def get_date(self, call: HostCall) -> HostReply:
        """As ``date -u -Iseconds`` has it, or with nanoseconds."""
        time = self._clock()
        if call.argument not in ("", NANOSECONDS):
            return HostReply(code=EXIT_BAD_REQUEST, last_words="The argument is none, or nanoseconds\n")
        fraction = f",{time.microsecond * 1000:09}" if call.argument else ""
        return HostReply(f"{time:%Y-%m-%dT%H:%M:%S}{fraction}+00:00\n".encode())

    async def features_request(self, call: HostCall) -> HostReply:
        """What the caller has written that it supports, as far as it is its own to say."""
        return self._take_features(call, parse_request)

    async def notify_tools(self, call: HostCall) -> HostReply:
        """The same from older tools, of Windows above all: of what they write, whether they have these two counts."""
        return self._take_features(call, parse_tools)

    def _take_features(self, call: HostCall, parse: Callable[[Mapping[str, bytes]], dict[str, str]]) -> HostReply:
        try:
            requested = parse(call.untrusted_keys)
            outcome = apply_request(
                self._context.store.system, QubeName(call.caller), requested, self._context.engine.power_state
            )
        except (ProtocolError, QubesException) as error:
            return HostReply(code=EXIT_BAD_REQUEST, last_words=f"{error}\n")
        if outcome.system is not self._context.store.system:
            self._context.commit(outcome.system)
        log.info("%s says what it supports: %d taken", call.caller, len(requested) - len(outcome.ignored))
        return HostReply()

    async def sync_applications(self, call: HostCall) -> HostReply:
        """Its applications, for menus; a later list replaces an earlier one."""
        untrusted_list = bytearray()
        try:
            async for untrusted_piece in call.untrusted_stream:
                untrusted_list += untrusted_piece
                if len(untrusted_list) > MAX_LIST:
                    break
            applications = parse_applications(bytes(untrusted_list))
        except (ProtocolError, TimeoutError) as error:
            return HostReply(code=EXIT_BAD_REQUEST, last_words=f"{error or 'The list did not come'}\n")
        caller = self._context.store.system.qubes.get(QubeName(call.caller))
        if caller is not None:
            try:
                self._context.applications.keep(caller.uuid, applications)
            except OSError:
                log.exception("%s: its applications could not be kept", caller.name)
                return HostReply(code=EXIT_BAD_REQUEST, last_words="The list could not be kept\n")
            self._context.publish(caller.name, "insula-applications-changed", number=len(applications))
            log.info("%s says that it has %d applications", caller.name, len(applications))
        return HostReply()

    async def show_windows(self, call: HostCall) -> HostReply:
        """A call that needs the user's session waits in it: its windows are shown where the last ones were."""
        try:
            await self._context.engine.show_windows(QubeName(call.caller), None)
        except QubesException as error:
            return HostReply(code=EXIT_BAD_REQUEST, last_words=f"{error}\n")
        return HostReply()

    async def notify_updates(self, call: HostCall) -> HostReply:
        """A number of updates; kept with the qube they would be installed in."""
        untrusted_count = call.untrusted_payload.strip()
        if not untrusted_count.isdigit():
            return HostReply(code=EXIT_BAD_REQUEST, last_words="A number of updates is a number\n")
        has_updates = int(untrusted_count) > 0
        caller = self._context.store.system.qubes.get(QubeName(call.caller))
        if caller is not None:
            await self._keep_updates(caller, has_updates)
        return HostReply()

    async def _keep_updates(self, caller: Qube, has_updates: bool) -> None:
        system = self._context.store.system
        if view(system, caller).flag("updateable"):
            owner: Qube | None = caller
        else:
            # A qube knows of its template only that it was not up to date when the qube started.
            owner = await self._template_of(caller) if has_updates else None
        if owner is None:
            return
        time = self._clock().strftime(TIME_FORMAT)
        changed = self._context.store.system.get(owner.name)
        had_updates = bool(changed.features.get(UPDATES))
        changed = changed.with_feature(UPDATES, "1" if has_updates else "").with_feature(LAST_CHECK, time)
        if had_updates and not has_updates:
            changed = changed.with_feature(LAST_UPDATE, time)
        self._context.commit(self._context.store.system.with_qube(changed))
        log.info("%s says that %s has %s", caller.name, owner.name, "updates" if has_updates else "no updates")

    async def _template_of(self, caller: Qube) -> Qube | None:
        """The qube whose root the caller runs on; None if what it knows of that is old."""
        system = self._context.store.system
        owner: Qube | None = caller
        while owner is not None and not view(system, owner).flag("updateable"):
            owner = system.qubes.get(QubeName(owner.template)) if owner.template else None
        if owner is None or self._context.engine.power_state(owner.name) is not PowerState.HALTED:
            return None
        if await self._context.engine.volume_is_outdated(caller.name, "root"):
            return None
        return owner
