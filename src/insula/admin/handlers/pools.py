"""Storage pools."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from insula.admin.arguments import parse_flag, parse_option_lines, parse_revisions_to_keep
from insula.admin.call import Call, Context
from insula.model.errors import (
    PermissionDenied,
    ProtocolError,
    QubesException,
    QubesPoolInUseError,
    QubesPoolNotFoundError,
    StoragePoolException,
)
from insula.model.system import PoolConfig
from insula.storage.pool import PoolUsage
from insula.storage.registry import DRIVERS

MAX_POOL_NAME = 64
"""Characters; ours, the published interface names no limit."""

_log = logging.getLogger("insula.admin")
_POOL_NAME = re.compile(r"[A-Za-z0-9_.-]+")


async def list_pools(context: Context, call: Call) -> str:
    return "".join(f"{name}\n" for name in sorted(context.store.system.pools))


async def list_drivers(context: Context, call: Call) -> str:
    """``DRIVER OPTION OPTION…`` a line."""
    rows = ([name, *(option.name for option in driver.options)] for name, driver in sorted(DRIVERS.items()))
    return "".join(f"{' '.join(row)}\n" for row in rows)


async def info(context: Context, call: Call) -> str:
    """Sorted configuration, then size and usage in bytes; without these where the pool cannot be used now."""
    pool = _pool(context, call)
    config = {**pool.options, "name": pool.name, "driver": pool.driver}
    try:
        live, usage = context.engine.pool(pool.name), await context.engine.pool_usage(pool.name)
    except (QubesPoolNotFoundError, StoragePoolException) as error:
        _log.warning("pool %s: %s", pool.name, error)
        return _lines(dict(sorted(config.items())))
    config = {**live.config, **config}
    return _lines(dict(sorted(config.items()))) + _lines({"size": str(usage.size), "usage": str(usage.used)})


async def usage_details(context: Context, call: Call) -> str:
    usage: PoolUsage = await context.engine.pool_usage(_pool(context, call).name)
    return _lines({"data_size": str(usage.size), "data_usage": str(usage.used)})


async def list_volumes(context: Context, call: Call) -> str:
    volumes = await context.engine.pool(_pool(context, call).name).volumes()
    return "".join(f"{vid}\n" for vid in volumes)


async def add(context: Context, call: Call) -> str:
    """Argument: the driver. Payload: ``name=N`` and the driver's options, one a line."""
    driver = DRIVERS.get(call.untrusted_arg)
    if driver is None:
        raise QubesException(f"No such pool driver: {call.untrusted_arg[:64]!a}; there is: {', '.join(DRIVERS)}")
    options = dict(parse_option_lines(call.untrusted_payload))
    name = _parse_pool_name(options.pop("name", ""))
    unknown = options.keys() - {option.name for option in driver.options}
    if unknown:
        raise ProtocolError(f"Pool driver {call.untrusted_arg} has no option {min(unknown)[:64]!a}")
    if name in context.store.system.pools:
        raise QubesPoolInUseError(f"There is a pool {name} already")
    missing = [option.name for option in driver.options if option.required and not options.get(option.name)]
    if missing:
        raise QubesException(f"Pool driver {call.untrusted_arg} needs the option {missing[0]}")
    await context.engine.pool_add(name, call.untrusted_arg, options)
    return ""


async def remove(context: Context, call: Call) -> str:
    await context.engine.pool_remove(_pool(context, call).name)
    return ""


async def set_revisions_to_keep(context: Context, call: Call) -> str:
    """Revisions that new volumes of this pool keep."""
    count = parse_revisions_to_keep(call.untrusted_payload)
    _set_option(context, _pool(context, call), "revisions_to_keep", str(count))
    return ""


async def set_ephemeral_volatile(context: Context, call: Call) -> str:
    """Whether new volatile volumes of this pool are ephemeral."""
    value = parse_flag(call.untrusted_payload, "ephemeral_volatile")
    _set_option(context, _pool(context, call), "ephemeral_volatile", str(value))
    return ""


def _set_option(context: Context, pool: PoolConfig, option: str, value: str) -> None:
    driver = DRIVERS.get(pool.driver)
    if driver is None or option not in {known.name for known in driver.options}:
        raise QubesException(f"Pool {pool.name} has no {option}: its driver, {pool.driver}, does not know it")
    changed = replace(pool, options={**pool.options, option: value})
    context.commit(context.store.system.with_pool(changed))


def _pool(context: Context, call: Call) -> PoolConfig:
    """:raise PermissionDenied: there is no pool of that name (published: not a not-found error)."""
    pools = context.store.system.pools
    if call.untrusted_arg not in pools:
        raise PermissionDenied(f"Argument not in the pools ({', '.join(sorted(pools))}): {call.untrusted_arg[:64]}")
    return pools[call.untrusted_arg]


def _parse_pool_name(untrusted_name: str) -> str:
    if not untrusted_name:
        raise ProtocolError("The payload lacks name=")
    if len(untrusted_name) > MAX_POOL_NAME or not _POOL_NAME.fullmatch(untrusted_name):
        raise QubesException(f"A pool's name has 1 to {MAX_POOL_NAME} of A-Z a-z 0-9 _ . -")
    return untrusted_name


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in values.items())
