"""One action on several qubes at once: a line of progress each, every error told, none stopping the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import explained, with_daemon_and_board
from insula.cli.failures import REFUSED, CliError
from insula.cli.progress import Board
from insula.cli.step import Step
from insula.model import errors

MAX_AT_ONCE = 16
"""Calls in flight; the daemon queues by itself, this only bounds the descriptors used here."""

Action = Callable[[AdminClient, str, Step], Awaitable[None]]


@dataclass(frozen=True)
class Words:
    """How an action is reported: ``work: starting`` … ``work started in 3.2 s``."""

    doing: str
    done: str


@dataclass(frozen=True)
class Outcome:
    name: str
    seconds: float
    error: CliError | None


def run_on(names: Sequence[str], words: Words, action: Action, *, as_json: bool = False) -> None:
    """Do it to every name (each once), report, and exit with 1 if one failed.

    :raise CliError: the only one failed.
    """
    outcomes = with_daemon_and_board(lambda client, board: perform(client, board, names, words, action))
    report(outcomes, as_json=as_json)


async def perform(
    client: AdminClient, board: Board, names: Sequence[str], words: Words, action: Action
) -> list[Outcome]:
    """Do it, in the order of ``names`` as far as they wait for each other at all."""
    slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(name: str) -> Outcome:
        async with slots:
            began = time.monotonic()
            try:
                with board.step(name, words.doing, words.done) as step:
                    await action(client, name, step)
            except errors.InsulaError as error:
                return Outcome(name, time.monotonic() - began, await explained(client, error))
            except CliError as error:
                return Outcome(name, time.monotonic() - began, error)
            return Outcome(name, time.monotonic() - began, None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name), name=f"{words.doing} {name}") for name in dict.fromkeys(names)]
    return [task.result() for task in tasks]


def report(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print what came of it; progress has told about those that went well."""
    if as_json:
        output.print_json(
            [
                {
                    "name": outcome.name,
                    "ok": outcome.error is None,
                    "seconds": round(outcome.seconds, 3),
                    "error": None if outcome.error is None else str(outcome.error),
                }
                for outcome in outcomes
            ]
        )
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    if len(outcomes) == 1:
        raise failed[0]
    for outcome in outcomes:
        if outcome.error is not None:
            output.print_failure(f"{outcome.name}: {outcome.error}", outcome.error.hint)
    raise typer.Exit(REFUSED)
