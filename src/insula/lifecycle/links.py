"""Who is linked to whom: each running qube to its net qube, that to its own, and the last one to the outside.

A qube is linked before its guest runs its first instruction, and before a link is there the net qube's agent knows
whose it is: ``/insula-link/N`` holds the client's addresses, and what comes over a link without such a key is dropped.
So no packet ever passes without its rules (MC-83).

A net qube that ends takes its links with it; its clients keep their interface and are linked again once it runs.
Nothing else is ever put in its place (MC-85). What is linked is written down in the machine's record, so that the next
daemon goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass

from insula.hal.capabilities import Capability
from insula.hal.driver import Driver, Machine
from insula.hal.errors import HalError
from insula.lifecycle.host import Host, Session, log
from insula.model.errors import QubesException
from insula.model.names import QubeName
from insula.model.property_resolution import view
from insula.model.qube import Qube
from insula.model.qubesdb_keys import (
    NETWORK_KEYS,
    client_key,
    firewall_keys,
    forward_keys,
    network_keys,
    published_firewall_keys,
    valid_rules,
)
from insula.model.roles import refusal
from insula.model.uplink import card_of, leads_outside

KEY_LIMIT_S = 10.0
"""For a session process to take a message; it does nothing that takes long, on a host that may be busy."""
LINK_AGAIN_S = (1.0, 4.0, 16.0, 64.0)
"""Between attempts to link those who wait for a net qube and could not be linked: the host may have been too busy."""
LOOK_AT_CLOCK_S = 3600.0
"""Between looks at whether the time of a rule is over."""


@dataclass(frozen=True)
class Link:
    provider: QubeName
    number: int
    """Of the provider's interface."""


@dataclass(frozen=True)
class Running:
    """A qube that is on, as far as links need it."""

    machine: Machine
    session: Session


class Links:
    """Belongs to one daemon and its event loop.

    ``find`` returns a qube that is on; None: it is not. ``record`` is called with a qube's name whenever its link has
    changed, to write that down.
    """

    def __init__(
        self, host: Host, find: Callable[[QubeName], Running | None], record: Callable[[QubeName], None]
    ) -> None:
        self._host = host
        self._find = find
        self._record = record
        self._links: dict[QubeName, Link] = {}
        self._told: dict[QubeName, set[str]] = {}
        """Keys in which a client's rules were told to its net qube."""
        self._timers: dict[QubeName, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: defaultdict[QubeName, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One change at a time of a client's link."""
        self._numbering: defaultdict[QubeName, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One new link at a time of a provider."""

    @property
    def _driver(self) -> Driver:
        return self._host.driver

    def note_of(self, client: QubeName) -> tuple[str, int] | None:
        """What a qube is linked to, for its record; what :meth:`restore` takes."""
        link = self._links.get(client)
        return None if link is None else (link.provider, link.number)

    def clients_of(self, provider: QubeName) -> list[QubeName]:
        """Qubes that are linked to it, sorted."""
        return sorted(client for client, link in self._links.items() if link.provider == provider)

    def keys_of(self, provider: QubeName) -> dict[str, str]:
        """What a net qube is told of its clients, for a session process that begins."""
        keys: dict[str, str] = {}
        for client, link in self._links.items():
            if link.provider == provider:
                keys |= self._keys_for(client, link.number)
        return keys

    def _keys_for(self, client: QubeName, number: int) -> dict[str, str]:
        system = self._host.store.system
        qube = system.get(client)
        now, here = time.time(), view(system, qube)
        rules = {
            **forward_keys(qube, number),
            **published_firewall_keys(here, now),
            **firewall_keys(qube, number, now),
        }
        self._told[client] = set(rules)
        self._await_expiry(client, qube)
        return {**rules, _path(number): client_key(here)}

    def restore(self, client: QubeName, note: tuple[str, int]) -> None:
        """A link of an earlier daemon holds: the machines were not asked to part."""
        provider, number = note
        self._links[client] = Link(QubeName(provider), number)

    # -- what lifecycle does

    async def begin(self, client: QubeName, machine: Machine) -> None:
        """Link a qube that is being started.

        :raise QubesException: its net qube is not on, or has no link left; it must not start.
        :raise HalError: the hypervisor cannot.
        """
        system = self._host.store.system
        here = view(system, system.get(client))
        if leads_outside(here) or card_of(here) is not None:
            self._require_allowed(client, None)
        if leads_outside(here):
            self._require_capability(client)
            await self._driver.link_outside(machine)
        elif here.netvm is not None:
            self._require_capability(client)
            async with self._busy[client]:
                await self._join(client, machine, here.netvm.subject.name)

    async def resume(self, client: QubeName) -> None:
        """Have the way outside of a qube looked after whose machine an earlier daemon started. What fails is logged."""
        running = self._find(client)
        try:
            if running is not None and self._leads_outside(client):
                await self._driver.link_outside(running.machine)
        except (QubesException, HalError) as e:
            log.error("%s: has no network: %s", client, e)

    async def end(self, name: QubeName) -> None:
        """A machine is gone: as a client it leaves its link, as a provider its clients wait for it."""
        async with self._busy[name]:
            await self._part(name)
        for client in self.clients_of(name):
            del self._links[client]
            self._record(client)

    async def provider_is_up(self, provider: QubeName) -> None:
        """Link those who wait for this net qube. One that fails does not keep the others; it is logged, and tried again
        on the side."""
        system = self._host.store.system
        if not view(system, system.get(provider)).flag("provides_network"):
            return
        if not await self._link_those_who_wait(provider):
            self._do_on_the_side(self._link_again(provider), f"clients of {provider}")

    async def _link_those_who_wait(self, provider: QubeName) -> bool:
        """Whether nobody waits any more."""
        is_done = True
        for client in [qube.name for qube in self._host.store.system.sorted_qubes() if qube.klass.has_machine]:
            running = self._find(client)
            if running is None or client in self._links or self._wanted(client) != provider:
                continue
            try:
                async with self._busy[client]:
                    if client not in self._links:
                        await self._join(client, running.machine, provider)
            except (QubesException, HalError, OSError) as e:
                log.error("%s: has no network: %s", client, str(e) or "no answer")
                is_done = False
        return is_done

    async def _link_again(self, provider: QubeName) -> None:
        for seconds in LINK_AGAIN_S:
            await asyncio.sleep(seconds)
            # (Started anew, it has linked those who wait by itself.)
            if self._find(provider) is None or await self._link_those_who_wait(provider):
                return

    async def follow(self, client: QubeName) -> None:
        """The net qube of a running qube may be another now: have it linked there, and nowhere else.

        :raise QubesException: it has no network now; the message says why.
        """
        async with self._busy[client]:
            running = self._find(client)
            if running is None:
                return
            wanted, link = self._wanted(client), self._links.get(client)
            if link is not None and link.provider == wanted:
                return
            if link is None and wanted is None and self._leads_outside(client):
                # Its interface leads to the host's network, and was none of a net qube's.
                return
            await self._part(client)
            try:
                if wanted is None:
                    await self._driver.unplug_nic(running.machine)
                    await self._tell(running.session, dict.fromkeys(NETWORK_KEYS))
                    return
                self._require_capability(client)
                await self._driver.plug_nic(running.machine, self._mac(client))
                await self._tell(running.session, {**dict.fromkeys(NETWORK_KEYS), **self._own_keys(client)})
                if self._find(wanted) is not None:
                    await self._join(client, running.machine, wanted)
            except (HalError, OSError) as e:
                raise QubesException(f"{client} has no network now: {e}") from e

    # -- firewall

    async def tell_firewall(self, client: QubeName) -> None:
        """Have its net qube carry out the rules of a qube, and the ports that lead to it, as they are now.

        :raise QubesException: it was not told; what holds are the rules before.
        """
        async with self._busy[client]:
            link = self._links.get(client)
            net = None if link is None else self._find(link.provider)
            if link is None or net is None:
                return
            old = self._told.get(client, set())
            keys: dict[str, str | None] = dict(self._keys_for(client, link.number))
            try:
                # The last of them says that they are complete.
                await self._tell(net.session, {**dict.fromkeys(old.difference(keys)), **keys})
            except OSError as e:
                raise QubesException(f"{link.provider} could not be told the rules of {client}: {e}") from e

    def _await_expiry(self, client: QubeName, qube: Qube) -> None:
        """Tell the rules again when the time of one is over."""
        self._stop_timer(client)
        times = [rule.expire for rule in valid_rules(qube.firewall, time.time()) if rule.expire is not None]
        if times:
            # Looked at once an hour: clocks are set.
            delay = min(max(0.0, min(times) - time.time()), LOOK_AT_CLOCK_S)
            self._timers[client] = asyncio.get_running_loop().call_later(delay, self._expired, client)

    def _expired(self, client: QubeName) -> None:
        self._do_on_the_side(self._tell_again(client), f"firewall of {client}")

    def _do_on_the_side(self, what: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(what, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_again(self, client: QubeName) -> None:
        try:
            await self.tell_firewall(client)
        except QubesException as e:
            log.error("%s", e)

    def _stop_timer(self, client: QubeName) -> None:
        timer = self._timers.pop(client, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """The daemon ends; what is linked stays."""
        for client in tuple(self._timers):
            self._stop_timer(client)
        for task in self._tasks:
            task.cancel()

    # -- how

    def _wanted(self, client: QubeName) -> QubeName | None:
        system = self._host.store.system
        provider = view(system, system.get(client)).netvm
        return None if provider is None else provider.subject.name

    def _leads_outside(self, client: QubeName) -> bool:
        """:raise QubesException: it is to have two networks."""
        system = self._host.store.system
        return leads_outside(view(system, system.get(client)))

    def _mac(self, client: QubeName) -> str:
        system = self._host.store.system
        return view(system, system.get(client)).text("mac")

    def _own_keys(self, client: QubeName) -> dict[str, str]:
        system = self._host.store.system
        return network_keys(view(system, system.get(client)))

    def _require_capability(self, client: QubeName) -> None:
        if Capability.LINKS not in self._driver.capabilities:
            raise QubesException(f"{client} cannot have a network: the hypervisor {self._driver.name} has no links")

    def _require_allowed(self, client: QubeName, provider: QubeName | None) -> None:
        """The last word on who reaches the network through whom. :raise QubesException:"""
        system = self._host.store.system
        reason = refusal(system, system.get(client), None if provider is None else system.get(provider))
        if reason:
            raise QubesException(reason)

    async def _join(self, client: QubeName, machine: Machine, provider: QubeName) -> None:
        self._require_allowed(client, provider)
        async with self._numbering[provider]:
            net = self._find(provider)
            if net is None:
                raise QubesException(f"its net qube {provider} is not running")
            taken = await self._driver.links(net.machine) | {
                link.number for link in self._links.values() if link.provider == provider
            }
            number = next((free for free in range(net.machine.spec.links) if free not in taken), None)
            if number is None:
                most = net.machine.spec.links
                raise QubesException(f"its net qube {provider} serves {most} qubes, and cannot serve more")
            # Before the link: the net qube's agent drops what it knows nobody for.
            await self._tell(net.session, self._keys_for(client, number))
            try:
                await self._driver.link(machine, net.machine, number)
            except BaseException:
                await self._forget_keys(client, net, number)
                raise
            self._links[client] = Link(provider, number)
        self._record(client)
        self._host.publish(provider, "net-domain-connect", vm=client)

    async def _part(self, client: QubeName) -> None:
        """Undo :meth:`_join`, as far as the provider is there."""
        link = self._links.pop(client, None)
        if link is None:
            return
        net = self._find(link.provider)
        if net is not None:
            try:
                await self._driver.unlink(net.machine, link.number)
            except HalError as e:
                log.warning("%s: link %d cannot be parted: %s", link.provider, link.number, e)
            await self._forget_keys(client, net, link.number)
        self._record(client)

    async def _forget_keys(self, client: QubeName, net: Running, number: int) -> None:
        self._stop_timer(client)
        try:
            await self._tell(net.session, dict.fromkeys([_path(number), *self._told.pop(client, ())]))
        except OSError as e:
            # A session that begins anew is told what holds then.
            log.warning("link %d: the net qube's session does not hear: %s", number, e or "no answer")

    async def _tell(self, session: Session, keys: Mapping[str, str | None]) -> None:
        """Change keys of a running qube; None: gone. :raise OSError: its session process does not take them."""
        for path, value in keys.items():
            # Each: a qube may have a thousand rules, and a key is one of them.
            async with asyncio.timeout(KEY_LIMIT_S):
                if value is None:
                    await session.remove_key(path)
                else:
                    await session.set_key(path, value.encode())


def _path(number: int) -> str:
    return f"/insula-link/{number}"
