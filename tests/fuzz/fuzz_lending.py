"""Invariant: whatever a session says about memory it lends, its caller takes bytes that lie in the memory and come next
in the data channel, or refuses with RemoteProtocolError; a session never counts more slots as lent than it lent."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress

import harness

from insula.hal import frames
from insula.rpc.lending import LOAN, MAX_LENT, SMALLEST, WORD, Borrower, Lender, Loans
from insula_proto import limits
from insula_proto.errors import RemoteProtocolError

MEMORY = frames.make(limits.BULK_SIZE, frames.BULK_NAME)
SEEDS = [
    LOAN.pack(1, SMALLEST, 0),
    LOAN.pack(1, SMALLEST, 0) + LOAN.pack(2, SMALLEST, SMALLEST),
    LOAN.pack(1, 1, 5) * MAX_LENT,
    LOAN.pack(7, 0xFFFFFFFF, 2**64 - 1),
    WORD.pack(0) + WORD.pack(1) + WORD.pack(2),
    WORD.pack(3) * 2,
]


def take_all(loans: Loans) -> None:
    position = 0
    while (ahead := loans.ahead(position)) is not None:
        assert ahead >= 0
        position += ahead
        loan, view = loans.take()
        assert view.readonly
        assert len(view) == loan.size > 0
        position += len(view)
        loans.give_back(loan)


def fuzz_one(data: bytes) -> None:
    with ExitStack() as undo:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            undo.enter_context(end)
        loans = Loans(theirs)
        with suppress(RemoteProtocolError):
            for number, piece in enumerate(harness.pieces(data)):
                socket.send_fds(ours, [piece], [] if number else [MEMORY])
                loans.hear()
                take_all(loans)
        lender = Lender()
        lender.descriptor = os.dup(MEMORY)
        undo.callback(lender.close)
        borrower = Borrower(ours, lender)
        lent = 0
        with suppress(RemoteProtocolError):
            for number, piece in enumerate(harness.pieces(data)):
                borrower.receive(piece)
                slot = 1 + number % 7
                # (A guest's slot is lent once: the mux sees to that.)
                if slot not in borrower._sizes:
                    lent += borrower.lend(slot, SMALLEST, number)
                assert 0 <= lender.lent <= min(lent, MAX_LENT)
        borrower.take_back()
        assert lender.lent == 0


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
