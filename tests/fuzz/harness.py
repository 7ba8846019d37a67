"""Runs a fuzz target: by atheris where it is installed, else over a fixed number of reproducible random inputs."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence

FIXED_RUNS = 300
MAX_SIZE = 4096


def inputs(seeds: Sequence[bytes], runs: int = FIXED_RUNS) -> Iterator[bytes]:
    """The seeds, then mutations of them and pure noise; always the same ones."""
    yield from seeds
    generator = random.Random(20240607)
    for _ in range(runs):
        if seeds and generator.random() < 0.8:
            data = bytearray(generator.choice(seeds))
            for _ in range(generator.randint(1, 8)):
                position = generator.randrange(len(data) + 1)
                choice = generator.random()
                if choice < 0.5 and position < len(data):
                    data[position] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
                elif choice < 0.75:
                    del data[position : position + generator.randint(1, 16)]
                else:
                    data[position:position] = generator.randbytes(generator.randint(1, 16))
            yield bytes(data)
        else:
            yield generator.randbytes(generator.randint(0, MAX_SIZE))


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut the data into pieces whose sizes depend on the data itself."""
    position = 0
    while position < len(data):
        size = 1 + data[position] % 61
        yield data[position : position + size]
        position += size


def main(fuzz_one: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Entry point of ``python tests/fuzz/fuzz_X.py``."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        count = 0
        for data in inputs(seeds, 20 * FIXED_RUNS):
            fuzz_one(data)
            count += 1
        print(f"{count} inputs without a fault (install atheris for coverage-guided fuzzing)")
    else:
        atheris.Setup(sys.argv, fuzz_one)
        atheris.Fuzz()
