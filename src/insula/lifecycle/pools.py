"""What the Admin API does with storage pools: part of the engine, see :class:`insula.lifecycle.engine.Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from insula.lifecycle.host import Host
from insula.lifecycle.volumes import storage_errors
from insula.model.errors import QubesPoolInUseError, QubesPoolNotFoundError
from insula.model.system import PoolConfig
from insula.storage.pool import Pool, PoolUsage
from insula.storage.registry import check_separate, open_pool


class PoolOperations:
    """Base of the engine."""

    host: Host

    def __init__(self) -> None:
        self._pools_lock = asyncio.Lock()

    def pool(self, name: str) -> Pool:
        try:
            return self.host.pools[name]
        except KeyError:
            raise QubesPoolNotFoundError(f"No such pool: {name!a}") from None

    async def pool_usage(self, name: str) -> PoolUsage:
        async with storage_errors():
            return await self.pool(name).pool_usage()

    async def pool_add(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        host = self.host
        async with self._pools_lock:
            if name in host.store.system.pools:
                raise QubesPoolInUseError(f"There is a pool {name} already")
            config = PoolConfig(name, driver, options)
            async with storage_errors():
                check_separate(config, host.store.system.pools.values())
                pool = open_pool(config)
                await pool.recover(frozenset())
            host.store.commit(host.store.system.with_pool(config))
            host.pools[name] = pool
        host.publish("", "pool-add", pool=name)

    async def pool_remove(self, name: str) -> None:
        host = self.host
        async with self._pools_lock:
            after = host.store.system.without_pool(name)
            host.publish("", "pool-pre-delete", pool=name)
            host.store.commit(after)
            pool = host.pools.pop(name, None)
            if pool is not None:
                await pool.aclose()
        host.publish("", "pool-delete", pool=name)
