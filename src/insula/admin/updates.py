"""Updates of a template that belong to a connection: kept as a whole, or not at all (MC-96).

``insula.update.Open`` starts a template and keeps the connection open. Whoever opened it has the package manager run
(the service ``insula.Update``) and, if that went well, shuts the template down, which commits its root. Whatever else
ends the connection (a failure, a client that is killed, the daemon's end) kills the machine: a template that is killed
keeps nothing of its root. A template that is being updated carries :data:`UPDATING`, so that a daemon that starts after
a crash ends what an earlier one had begun before anybody could commit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from insula.events.bus import Listener
from insula.events.types import Event
from insula.hal.errors import HalError
from insula.model.errors import InsulaError, QubesException, QubesVMNotHaltedError, QubesVMNotStartedError
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.qube import Qube
from insula.model.state import PowerState

if TYPE_CHECKING:
    from insula.admin.call import Context

READY = "update-ready"
"""First event: the template is up; ``rpc_socket`` is where its package manager is run."""
ENDED = "update-ended"
"""Last event: its machine has ended, or ends now. ``kept`` is ``True`` if it was shut down, and its root so committed;
``why`` says why it was ended, where that was not the caller's wish."""
UPDATING = "insula-updating"
"""Feature of a template whose update has begun and not ended."""
KLASSES = frozenset({Klass.TEMPLATEVM})
"""What can be put back as a whole: others keep what they wrote."""

LOOK_S = 5.0
"""Between looks at whether the machine goes on: nobody tells when the host's disk takes no more of what it writes."""

_log = logging.getLogger("insula.admin")


async def recover(context: Context) -> None:
    """End updates that an earlier daemon lost: their templates are as before. Before anybody can shut one down."""
    for qube in context.store.system.sorted_qubes():
        if UPDATING in qube.features:
            _log.warning("%s: its update was interrupted; it is as before", qube.name)
            await _end(context, qube.name)


async def hold(context: Context, template: Qube) -> AsyncGenerator[Event, None]:
    """Start a template for an update, say :data:`READY`, wait for its end, say :data:`ENDED`.

    Closing the generator before the end ends the machine; nothing is kept.

    :raise QubesException: not a template. :raise QubesVMNotHaltedError: it runs: what was done in it cannot be told
        from the update. :raise InsulaError: it could not be started.
    """
    if template.klass not in KLASSES:
        raise QubesException(f"{template.name} is no template: its root could not be put back")
    if context.engine.power_state(template.name) is not PowerState.HALTED:
        raise QubesVMNotHaltedError(f"{template.name} is running; shut it down first, then update it")
    if UPDATING in template.features:
        raise QubesException(f"{template.name} is being updated")
    _mark(context, template.name, "1")
    try:
        with context.bus.listen() as events:
            await context.engine.start(template.name)
            yield Event(template.name, READY, {"rpc_socket": str(context.rpc_socket(template.name))})
            why = await _wait_for_end(context, events, template.name)
            kept = not why and context.engine.ended_cleanly(template.name)
            _log.info("%s: updated: %s", template.name, "kept" if kept else f"not kept {why}".strip())
            yield Event(template.name, ENDED, {"kept": str(kept), "why": why})
    finally:
        # Also where the caller is gone and this is being cancelled.
        await asyncio.shield(asyncio.ensure_future(_end(context, template.name)))


async def _wait_for_end(context: Context, events: Listener, name: QubeName) -> str:
    """Empty once its machine has ended; why not, if it stands still and nobody has asked for that."""
    is_paused = False
    while True:
        try:
            async with asyncio.timeout(LOOK_S):
                event = await anext(events)
        except TimeoutError:
            if not is_paused and context.engine.power_state(name) is PowerState.PAUSED:
                return "it stood still: the host's disk is full, or cannot be written to"
            continue
        except StopAsyncIteration:
            return ""
        if event.subject != name:
            continue
        match event.name:
            case "domain-shutdown":
                return ""
            case "domain-pre-paused":
                is_paused = True
            case "domain-unpaused":
                is_paused = False


def _mark(context: Context, name: QubeName, value: str | None) -> None:
    qube = context.store.system.qubes.get(name)
    if qube is not None:
        changed = qube.without_feature(UPDATING) if value is None else qube.with_feature(UPDATING, value)
        context.commit(context.store.system.with_qube(changed))


async def _end(context: Context, name: QubeName) -> None:
    """End the machine if it is on, and the mark."""
    try:
        if context.engine.power_state(name) is not PowerState.HALTED:
            with contextlib.suppress(QubesVMNotStartedError):
                await context.engine.kill(name)
    except (InsulaError, HalError) as error:
        # The mark stays: the next daemon ends it.
        _log.error("%s: its update could not be ended: %s", name, error)
        return
    _mark(context, name, None)
