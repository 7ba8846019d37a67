"""The pool drivers there are: name, options, how to open one. A new driver is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from insula.model.block import MIB
from insula.model.system import PoolConfig
from insula.storage.kernel_pool import KernelPool
from insula.storage.pool import Pool, StorageError
from insula.storage.qcow2_pool import Qcow2Pool

RESERVE_MIB_MAX = 1024 * 1024
"""1 TiB kept free is no longer a reserve but a mistake."""


class UnknownDriver(StorageError): ...


class UnknownOption(StorageError): ...


class MissingOption(StorageError): ...


class BadOption(StorageError):
    """An option's value cannot be."""


@dataclass(frozen=True)
class PoolOption:
    name: str
    required: bool = False
    check: Callable[[str], object] = str
    """Raises ValueError on text that cannot be its value."""


@dataclass(frozen=True)
class PoolDriver:
    name: str
    options: tuple[PoolOption, ...]
    open: Callable[[PoolConfig], Pool]
    """Called with checked options."""


def _parse_bool(text: str) -> bool:
    """``True`` and ``False`` as they travel on the wire (admin-api §2)."""
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text == "True"


def _parse_number(smallest: int, largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.lstrip("-").isdigit() else None
        if number is None or not smallest <= number <= largest:
            raise ValueError(f"{text!r} is not a number from {smallest} to {largest}")
        return number

    return parse


def _parse_folder(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or not text.isprintable():
        raise ValueError(f"{text!r} is not an absolute path")
    return path


_DIR_PATH = PoolOption("dir_path", required=True, check=_parse_folder)
_DEFAULTS = (
    PoolOption("revisions_to_keep", check=_parse_number(-1, 2**31)),
    PoolOption("ephemeral_volatile", check=_parse_bool),
)
"""Defaults for new volumes; whoever makes volumes applies them."""


def _open_qcow2(config: PoolConfig) -> Pool:
    reserve_mib = config.options.get("reserve_mib")
    return Qcow2Pool(
        config.name,
        config.options,
        Path(config.options["dir_path"]),
        reserve=None if reserve_mib is None else int(reserve_mib) * MIB,
    )


def _open_kernels(config: PoolConfig) -> Pool:
    return KernelPool(config.name, config.options, Path(config.options["dir_path"]))


_ALL = (
    PoolDriver(
        "qcow2",
        (_DIR_PATH, *_DEFAULTS, PoolOption("reserve_mib", check=_parse_number(0, RESERVE_MIB_MAX))),
        _open_qcow2,
    ),
    PoolDriver("linux-kernel", (_DIR_PATH,), _open_kernels),
)
DRIVERS: Mapping[str, PoolDriver] = {driver.name: driver for driver in _ALL}
"""For ``admin.pool.ListDrivers``: names and options, in the order they are shown."""


def open_pool(config: PoolConfig) -> Pool:
    """Check a pool's configuration and open it; blocks for a few file operations.

    :raise UnknownDriver, UnknownOption, MissingOption, BadOption: :raise StorageError: its folder cannot be used
    """
    driver = DRIVERS.get(config.driver)
    if driver is None:
        raise UnknownDriver(f"there is no pool driver {config.driver!r} (there are: {', '.join(DRIVERS)})")
    options = {option.name: option for option in driver.options}
    for name, value in config.options.items():
        if name not in options:
            raise UnknownOption(f"pool driver {driver.name} has no option {name!r} (it has: {', '.join(options)})")
        try:
            options[name].check(value)
        except ValueError as error:
            raise BadOption(f"option {name} of pool {config.name}: {error}") from error
    for option in driver.options:
        if option.required and option.name not in config.options:
            raise MissingOption(f"pool driver {driver.name} needs the option {option.name}")
    return driver.open(config)


def check_separate(config: PoolConfig, others: Iterable[PoolConfig]) -> None:
    """Every folder has one owner: two pools over the same files would tidy away each other's.

    :raise BadOption: the folder of the pool is another pool's, or one is inside the other.
    """
    folder = Path(config.options.get("dir_path", "")).resolve()
    for other in others:
        taken = Path(other.options.get("dir_path", "")).resolve()
        if other.name != config.name and (folder.is_relative_to(taken) or taken.is_relative_to(folder)):
            raise BadOption(f"dir_path of pool {config.name}: {folder} overlaps {taken}, which is pool {other.name}")
