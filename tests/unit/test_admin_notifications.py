"""Notifications of qubes at the host: whose they are, what is shown of them (MC-50)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.admin.notifications import Notifications, shown_texts
from insula.model.names import QubeName
from insula.policy import agent
from insula.policy.agent import MAX_LINES, Notification
from insula.rpc.ask import CannotAsk
from insula.rpc.host_services import HostCall, HostReply
from insula.testing.admin_daemon import WORK, AdminDaemon, admin_daemon
from insula_proto import notification

TOLD = notification.notification(3, "normal", "mail", "New letter", "from\nsomebody")


class Shown:
    def __init__(self, daemon: AdminDaemon) -> None:
        self.daemon = daemon
        self.shown: list[Notification] = []
        self.refusal: CannotAsk | None = None

    async def show(self, told: Notification) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.shown.append(told)

    async def call(self, caller: str, payload: bytes) -> HostReply:
        service = Notifications(self.daemon.context, self.show).services()["insula.Notify"]
        assert len(payload) <= service.max_payload
        return await service.answer(HostCall(caller, "insula.Notify", "", "dom0", payload))


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[Shown]:
    async with admin_daemon(tmp_path) as daemon:
        yield Shown(daemon)


async def test_mc50_it_is_the_callers_whatever_it_says(shown: Shown) -> None:
    told = notification.notification(3, "critical", "vault", "[vault] Insula asks", "vault: type your password")
    assert (await shown.call(WORK, notification.encode(told))).code == 0
    [seen] = shown.shown
    assert (seen.source, seen.icon, seen.number, seen.is_urgent) == (WORK, "appvm-blue", 3, True)


async def test_what_is_no_notification_is_refused_and_not_shown(shown: Shown) -> None:
    for payload in (b"", b"x", notification.encode(TOLD) + b"\0", notification.encode(TOLD).replace(b"3", b"-3")):
        reply = await shown.call(WORK, payload)
        assert reply.code == 1
        assert reply.last_words
    assert (await shown.call("gone", notification.encode(TOLD))).code == 1
    assert shown.shown == []


async def test_qube_whose_windows_are_shown_elsewhere_shows_nothing_here(shown: Shown) -> None:
    store = shown.daemon.store
    store.commit(store.system.with_qube(store.system.get(QubeName(WORK)).with_property("guivm", None)))
    assert (await shown.call(WORK, notification.encode(TOLD))).code == 1
    assert shown.shown == []


async def test_nobody_to_show_it_is_said_to_the_caller(shown: Shown) -> None:
    shown.refusal = CannotAsk("there is no display")
    reply = await shown.call(WORK, notification.encode(TOLD))
    assert (reply.code, reply.last_words) == (1, "It is not shown: there is no display\n")


async def test_other_scripts_are_shown_where_the_qubes_titles_may_have_them(shown: Shown) -> None:
    payload = notification.encode(notification.notification(1, "low", "", "Grüße", ""))
    await shown.call(WORK, payload)
    store = shown.daemon.store
    store.commit(store.system.with_qube(store.system.get(QubeName(WORK)).with_feature("gui-allow-utf8-titles", "1")))
    await shown.call(WORK, payload)
    assert [told.title for told in shown.shown] == ["Gr____e", "Grüße"]


@pytest.mark.parametrize(
    ("untrusted_text", "seen"),
    [
        ("<b>bold</b> <a href='x'>&amp;", "<b>bold</b> <a href='x'>&amp;"),
        ("\x1b[2Jgone", "_[2Jgone"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("a\u200bb\u2028c", "a_b_c"),
        ("tab\there", "tab here"),
        ("one\n\n \ntwo", "one\ntwo"),
    ],
)
def test_mc39_text_is_shown_as_text_and_nothing_in_it_moves_or_hides(untrusted_text: str, seen: str) -> None:
    told = notification.notification(1, "normal", "", "Title", untrusted_text)
    assert shown_texts(told, allows_utf8=True) == ("Title", seen)


def test_title_is_one_line_with_the_program_where_that_says_more() -> None:
    def title(program: str, summary: str) -> str:
        return shown_texts(notification.notification(1, "normal", program, summary, "x"), allows_utf8=False)[0]

    assert title("mail", "Two\nlines") == "Two lines (mail)"
    assert title("Mail", "mail has come") == "mail has come"
    assert title("mail", "") == ""


def test_many_lines_are_cut_and_the_cut_is_seen() -> None:
    told = notification.notification(1, "normal", "", "t", "\n".join(map(str, range(100))))
    lines = shown_texts(told, allows_utf8=False)[1].split("\n")
    assert len(lines) == MAX_LINES
    assert lines[-1].endswith("...")


def test_longest_texts_fit_what_the_prompt_takes() -> None:
    """Else the longest notification could not be shown, and only then would anybody know."""
    longest = notification.notification(1, "normal", "p" * 999, "s" * 999, "b…\n" * 9999)
    for allows_utf8 in (False, True):
        title, text = shown_texts(longest, allows_utf8=allows_utf8)

        agent.encode(Notification("work", "appvm-red", 1, False, title, text))
