"""Client of the Admin API: one connection a call, nothing cached, nothing imported from the daemon.

:meth:`AdminClient.call` is the protocol; the other methods give the calls names, types and values, for the
command line, the manager and tests. Errors of the server are raised as the classes of
:mod:`insula.model.errors`, found by the name on the wire (admin-api §9).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from insula.admin import answers
from insula.admin.answers import CurrentState, MalformedAnswer, PoolInfo, PropertyValue, QubeRow, VolumeInfo
from insula.model import devices, errors
from insula.model.names import ADMIN_NAME, parse_qube_name
from insula_proto import admin
from insula_proto.admin import EventRecord, Failure, Refused, Request, RequestHead, ResponseDecoder, Success
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

DOM0 = "dom0"
READ_SIZE = 65536
"""Bytes read from the socket at once."""
UPLOAD_CHUNK = 1024 * 1024
"""Bytes of a stream written before waiting for the server to take them."""

__all__ = [
    "AccessRefused",
    "AdminClient",
    "CurrentState",
    "DaemonUnavailable",
    "EventRecord",
    "MalformedAnswer",
    "PoolInfo",
    "PropertyValue",
    "QubeRow",
    "VolumeInfo",
]


class DaemonUnavailable(Exception):
    """No daemon answers at the socket (not running, or no right to connect)."""


class AccessRefused(Exception):
    """The daemon closed the connection without an answer: not allowed, or an error it logged."""


def exception_from(failure: Failure) -> errors.InsulaError:
    """The error as a class of :mod:`insula.model.errors`; an unknown name gives QubesException."""
    found = getattr(errors, failure.type, None)
    if isinstance(found, type) and issubclass(found, errors.InsulaError) and found is not errors.InsulaError:
        return found(failure.message)
    return errors.QubesException(failure.message)


class AdminClient:
    """Calls the daemon at ``socket_path``. Stateless: may be used by many tasks at once.

    Every method raises :class:`DaemonUnavailable`, :class:`AccessRefused`, :class:`MalformedAnswer`,
    ProtocolError for arguments that cannot be sent, and the errors of the call.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    # the protocol

    async def call(self, method: str, dest: str = DOM0, arg: str = "", payload: bytes = b"") -> bytes:
        """Make one call and return its result.

        :raise InsulaError: what the server answered, by class.
        """
        request = _encode(Request(RequestHead(method, arg, DOM0, dest), payload))
        return await self._exchange(method, _once(request))

    async def upload(self, method: str, dest: str, arg: str, data: AsyncIterable[bytes]) -> bytes:
        """As :meth:`call` with a payload of any length, for the methods whose payload is a stream."""

        async def parts() -> AsyncIterator[bytes]:
            yield _encode_head(RequestHead(method, arg, DOM0, dest))
            async for chunk in data:
                yield chunk

        return await self._exchange(method, parts())

    async def stream(
        self, method: str, dest: str = DOM0, arg: str = "", payload: bytes = b""
    ) -> AsyncGenerator[EventRecord, None]:
        """Make a call that answers with events and yield them, ``connection-established`` first.

        Ends when the server closes the stream. Close the iterator (``aclosing``) to hang up.
        """
        request = _encode(Request(RequestHead(method, arg, DOM0, dest), payload))
        async with self._connection() as (reader, writer):
            await _send(writer, _once(request))
            decoder = ResponseDecoder()
            try:
                while chunk := await _read(reader):
                    for record in decoder.receive(chunk):
                        yield record
                end = decoder.finish()
            except RemoteProtocolError as error:
                raise MalformedAnswer(f"{method}: {error}") from error
        if end is not None:
            _result(method, end)
            raise MalformedAnswer(f"{method} answered a result instead of events")

    # qubes

    async def list_qubes(self, dest: str = DOM0) -> list[QubeRow]:
        """All qubes sorted by name, dom0 first; with ``dest`` only that qube."""
        return answers.parse_qubes(await self.call("admin.vm.List", dest))

    async def create_qube(
        self,
        klass: str,
        name: str,
        label: str,
        *,
        template: str | None = None,
        pool: str | None = None,
        pools: Mapping[str, str] | None = None,
    ) -> None:
        """``template=None``: the default one. ``pool`` for all volumes or ``pools`` (volume → pool), not both."""
        parse_qube_name(name)
        words = [f"name={name}", f"label={label}"]
        words += [f"pool={pool}"] if pool is not None else []
        words += [f"pool:{volume}={chosen}" for volume, chosen in sorted((pools or {}).items())]
        for word in words:
            _check_separable(word, " ")
        verb = "CreateInPool" if pool is not None or pools else "Create"
        await self.call(f"admin.vm.{verb}.{klass}", arg=template or "", payload=_payload(" ".join(words)))

    async def create_disposable(self, template: str = DOM0) -> str:
        """Make a disposable of ``template`` (dom0: the default one); returns its name."""
        return answers.parse_text(await self.call("admin.vm.CreateDisposable", template))

    def open_disposable(
        self, template: str = DOM0, options: Mapping[str, object] | None = None
    ) -> AsyncGenerator[EventRecord, None]:
        """Make and start a disposable that is removed when the iterator is closed (``insula.disposable.Open``).

        ``template``: a disposable template, a template, or dom0 for the default. ``options``: fields of
        :class:`insula.admin.leases.Options`. Yields ``disposable-ready`` and, if it ends by itself,
        ``disposable-ended``.
        """
        payload = json.dumps(options).encode() if options else b""
        return self.stream("insula.disposable.Open", template, payload=payload)

    async def remove(self, name: str) -> None:
        await self.call("admin.vm.Remove", name)

    async def start(self, name: str, cd: Path | None = None) -> None:
        """Returns when the qube is up. ``cd``: an image of this computer it boots from."""
        if cd is None:
            await self.call("admin.vm.Start", name)
        else:
            await self.call("insula.vm.StartWithCd", name, payload=str(cd).encode())

    async def shutdown(self, name: str, *, force: bool = False, wait: bool = False) -> None:
        words = [word for word, wanted in (("force", force), ("wait", wait)) if wanted]
        await self.call("admin.vm.Shutdown", name, "+".join(words))

    async def kill(self, name: str) -> None:
        await self.call("admin.vm.Kill", name)

    async def pause(self, name: str) -> None:
        await self.call("admin.vm.Pause", name)

    async def unpause(self, name: str) -> None:
        await self.call("admin.vm.Unpause", name)

    async def current_state(self, name: str) -> CurrentState:
        return answers.parse_current_state(await self.call("admin.vm.CurrentState", name))

    async def console_path(self, name: str) -> str:
        return answers.parse_text(await self.call("admin.vm.Console", name))

    async def rpc_socket(self, name: str) -> Path:
        """Socket of the qube's session, where commands are run. :raise QubesVMNotRunningError:"""
        return Path(answers.parse_text(await self.call("insula.vm.RpcSocket", name)))

    async def show_windows(self, name: str, desktop: Mapping[str, str] | None = None) -> None:
        """Have its windows shown on the desktop that these variables of an environment name; without, where the last
        ones are.
        """
        await self.call("insula.vm.ShowWindows", name, payload=b"" if desktop is None else json.dumps(desktop).encode())

    async def notes(self, name: str) -> str:
        return answers.parse_text(await self.call("admin.vm.notes.Get", name))

    async def set_notes(self, name: str, notes: str) -> None:
        await self.call("admin.vm.notes.Set", name, payload=_payload(notes))

    # properties; of a qube, or global where qube is None

    async def list_properties(self, qube: str | None = None) -> list[str]:
        return answers.parse_lines(await self._property("List", qube))

    async def get_properties(self, qube: str | None = None) -> list[PropertyValue]:
        return answers.parse_properties(await self._property("GetAll", qube))

    async def get_property(self, name: str, qube: str | None = None) -> PropertyValue:
        return answers.parse_property(name, await self._property("Get", qube, name))

    async def get_property_default(self, name: str, qube: str | None = None) -> PropertyValue | None:
        """What :meth:`reset_property` would make of it; None if it has no default."""
        answer = await self._property("GetDefault", qube, name)
        return answers.parse_property(name, b"default=True " + answer) if answer else None

    async def set_property(self, name: str, value: str, qube: str | None = None) -> None:
        """An empty value is None for properties that name a qube."""
        await self._property("Set", qube, name, _payload(value))

    async def reset_property(self, name: str, qube: str | None = None) -> None:
        await self._property("Reset", qube, name)

    async def property_help(self, name: str, qube: str | None = None) -> str:
        return answers.parse_text(await self._property("Help", qube, name))

    async def _property(self, verb: str, qube: str | None, name: str = "", payload: bytes = b"") -> bytes:
        if qube is None:
            return await self.call(f"admin.property.{verb}", DOM0, name, payload)
        return await self.call(f"admin.vm.property.{verb}", qube, name, payload)

    # features and tags

    async def list_features(self, qube: str) -> list[str]:
        return answers.parse_lines(await self.call("admin.vm.feature.List", qube))

    async def get_features(self, qube: str) -> dict[str, str]:
        """The qube's own features, not those it takes from its template."""
        values = {}
        for name in await self.list_features(qube):
            with contextlib.suppress(errors.QubesFeatureNotFoundError):  # removed since the list was made
                values[name] = await self.get_feature(qube, name)
        return values

    async def get_feature(self, qube: str, name: str, *, check: str = "") -> str:
        """``check``: where to look if the qube itself lacks it: ``Template``, ``Netvm``, ``AdminVM`` or
        ``TemplateAndAdminVM``.

        :raise QubesFeatureNotFoundError:
        """
        verb = f"CheckWith{check}" if check else "Get"
        return answers.parse_text(await self.call(f"admin.vm.feature.{verb}", qube, name))

    async def set_feature(self, qube: str, name: str, value: str) -> None:
        await self.call("admin.vm.feature.Set", qube, name, _payload(value))

    async def remove_feature(self, qube: str, name: str) -> None:
        await self.call("admin.vm.feature.Remove", qube, name)

    async def list_tags(self, qube: str) -> list[str]:
        return answers.parse_lines(await self.call("admin.vm.tag.List", qube))

    async def add_tag(self, qube: str, tag: str) -> None:
        await self.call("admin.vm.tag.Set", qube, tag)

    async def remove_tag(self, qube: str, tag: str) -> None:
        await self.call("admin.vm.tag.Remove", qube, tag)

    # the microphone

    async def microphone_holder(self) -> str | None:
        """The qube that it is attached to."""
        line = await self.call("admin.vm.device.mic.Available", ADMIN_NAME)
        return devices.attached_to(line.decode("ascii", "replace"))

    async def attach_microphone(self, qube: str) -> None:
        """:raise DeviceAlreadyAttached: to some qube."""
        await self.call("admin.vm.device.mic.Attach", qube, devices.ARGUMENT)

    async def detach_microphone(self, qube: str) -> None:
        """:raise DeviceNotAssigned: it does not have it."""
        await self.call("admin.vm.device.mic.Detach", qube, devices.ARGUMENT)

    # volumes

    async def list_volumes(self, qube: str) -> list[str]:
        return answers.parse_lines(await self.call("admin.vm.volume.List", qube))

    async def volume_info(self, qube: str, volume: str) -> VolumeInfo:
        return answers.parse_volume(await self.call("admin.vm.volume.Info", qube, volume))

    async def volume_revisions(self, qube: str, volume: str) -> list[str]:
        """Oldest first."""
        return answers.parse_lines(await self.call("admin.vm.volume.ListSnapshots", qube, volume))

    async def volume_revert(self, qube: str, volume: str, revision: str) -> None:
        await self.call("admin.vm.volume.Revert", qube, volume, _payload(revision))

    async def volume_resize(self, qube: str, volume: str, size: int) -> None:
        await self.call("admin.vm.volume.Resize", qube, volume, str(size).encode())

    async def volume_clear(self, qube: str, volume: str) -> None:
        await self.call("admin.vm.volume.Clear", qube, volume)

    async def volume_set(self, qube: str, volume: str, name: str, value: int | bool) -> None:
        """``name``: revisions_to_keep, rw or ephemeral."""
        await self.call(f"admin.vm.volume.Set.{name}", qube, volume, str(value).encode())

    async def volume_clone(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """Replace the content of ``target`` (qube, volume) by that of ``source``."""
        token = await self.call("admin.vm.volume.CloneFrom", source[0], source[1])
        await self.call("admin.vm.volume.CloneTo", target[0], target[1], token)

    async def volume_import(self, qube: str, volume: str, data: AsyncIterable[bytes], size: int) -> None:
        """Replace the content of a halted qube's volume by ``size`` bytes; the volume gets that size."""

        async def parts() -> AsyncIterator[bytes]:
            yield f"{size}\n".encode()
            async for chunk in data:
                yield chunk

        await self.upload("admin.vm.volume.ImportWithSize", qube, volume, parts())

    # pools and labels

    async def list_pools(self) -> list[str]:
        return answers.parse_lines(await self.call("admin.pool.List"))

    async def pool_drivers(self) -> dict[str, list[str]]:
        """Driver → its options."""
        rows = [line.split(" ") for line in answers.parse_lines(await self.call("admin.pool.ListDrivers"))]
        return {row[0]: row[1:] for row in rows}

    async def pool_info(self, pool: str) -> PoolInfo:
        return answers.parse_pool(await self.call("admin.pool.Info", arg=pool))

    async def add_pool(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        lines = [f"name={name}", *(f"{key}={value}" for key, value in options.items())]
        for line in lines:
            _check_separable(line, "\n")
        await self.call("admin.pool.Add", arg=driver, payload=_payload("".join(f"{line}\n" for line in lines)))

    async def remove_pool(self, name: str) -> None:
        await self.call("admin.pool.Remove", arg=name)

    async def set_pool(self, pool: str, name: str, value: int | bool) -> None:
        """``name``: revisions_to_keep or ephemeral_volatile."""
        await self.call(f"admin.pool.Set.{name}", arg=pool, payload=str(value).encode())

    async def list_labels(self) -> dict[str, str]:
        """Label → colour ``0xRRGGBB``."""
        names = answers.parse_lines(await self.call("admin.label.List"))
        return {name: answers.parse_text(await self.call("admin.label.Get", arg=name)) for name in names}

    async def list_classes(self) -> list[str]:
        return answers.parse_lines(await self.call("admin.vmclass.List"))

    # streams

    def events(self, dest: str = DOM0) -> AsyncGenerator[EventRecord, None]:
        """Everything that happens (to ``dest``, or anywhere), ``connection-established`` first."""
        return self.stream("admin.Events", dest)

    def stats(self, dest: str = DOM0) -> AsyncGenerator[EventRecord, None]:
        """``vm-stats`` of every running qube (or of ``dest``), each ``stats_interval`` seconds."""
        return self.stream("admin.vm.Stats", dest)

    # beyond the published methods (docs/protocols/insula-admin.md)

    async def status(self) -> Mapping[str, object]:
        """What the daemon is and what it runs on."""
        answer = json.loads(answers.parse_text(await self.call("insula.Status")))
        if not isinstance(answer, dict):
            raise MalformedAnswer("insula.Status did not answer an object")
        return answer

    async def shutdown_daemon(self) -> None:
        """Stop every qube, then the daemon; returns when the qubes are stopped."""
        await self.call("insula.Shutdown")

    async def install_template(self, name: str, image: Mapping[str, str]) -> None:
        """Take in a template that was built: ``root_image``, ``kernel``, ``initrd`` (paths), ``kernel_version``,
        ``cmdline``, ``content_key``, ``distribution``, ``release``; returns when its qube can be used.
        """
        await self.call("insula.template.Install", arg=name, payload=json.dumps(dict(image)).encode())

    async def applications(self, qube: str) -> list[dict[str, Any]]:
        """Applications as ``insula.vm.Applications`` describes them; what a guest said of itself."""
        return _parsed_list(await self.call("insula.vm.Applications", qube))

    async def seeds(self) -> list[dict[str, Any]]:
        """Seeds as ``insula.seed.List`` describes them."""
        return _parsed_list(await self.call("insula.seed.List"))

    async def build_seed(self, name: str) -> dict[str, Any]:
        """Have the seed for a qube, or for app qubes of a template; returns when it can be used."""
        answer = json.loads(answers.parse_text(await self.call("insula.seed.Build", name)))
        if not isinstance(answer, dict):
            raise MalformedAnswer("insula.seed.Build did not answer an object")
        return answer

    async def drop_seed(self, seed: str) -> None:
        """Remove a seed."""
        await self.call("insula.seed.Drop", arg=seed)

    async def wait_for(self, wanted: Sequence[str], dest: str = DOM0) -> EventRecord:
        """Return the first event of one of these names. :raise AccessRefused: the stream ended without one."""
        async with contextlib.aclosing(self.stream("admin.Events", dest)) as events:
            async for event in events:
                if event.name in wanted:
                    return event
        raise AccessRefused("the event stream ended")

    # transport

    async def _exchange(self, method: str, parts: AsyncIterable[bytes]) -> bytes:
        """Send ``parts`` and return the result. A server that answers before it took everything has decided."""
        async with self._connection() as (reader, writer):
            sending = asyncio.create_task(_send(writer, parts), name=f"sending {method}")
            reading = asyncio.create_task(self._result(method, reader), name=f"answer of {method}")
            try:
                await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()  # an error of the caller's own stream ends the call
                end = await reading
            finally:
                for task in (sending, reading):
                    task.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
        return _result(method, end)

    async def _result(self, method: str, reader: asyncio.StreamReader) -> admin.Response | None:
        decoder = ResponseDecoder()
        try:
            while chunk := await _read(reader):
                if decoder.receive(chunk):
                    raise MalformedAnswer(f"{method} answered events instead of a result")
            return decoder.finish()
        except RemoteProtocolError as error:
            raise MalformedAnswer(f"{method}: {error}") from error

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket_path))
        except OSError as error:
            raise DaemonUnavailable(f"No daemon answers at {self._socket_path}: {error.strerror}") from error
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _send(writer: asyncio.StreamWriter, parts: AsyncIterable[bytes]) -> None:
    """Send and half-close. A server that answers early has stopped reading: then its answer is what counts."""
    pending = 0
    with contextlib.suppress(ConnectionError):
        async for part in parts:
            writer.write(part)
            pending += len(part)
            if pending >= UPLOAD_CHUNK:
                await writer.drain()
                pending = 0
        await writer.drain()
        writer.write_eof()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(READ_SIZE)
    except ConnectionError:  # closed with unread bytes of ours: the end of the answer all the same
        return b""


def _payload(text: str) -> bytes:
    """Text as it came from a command line, bytes that are no UTF-8 included: the server refuses those by name."""
    return text.encode("utf-8", "surrogateescape")


def _check_separable(item: str, separator: str) -> None:
    """Refuse what the server would take for several items. :raise ProtocolError:"""
    if separator in item:
        key, _, value = item.partition("=")
        raise errors.ProtocolError(f"This {key} cannot be sent: {value[:64]!a} has {separator!a} in it")


def _encode(request: Request) -> bytes:
    try:
        return admin.encode_request(request)
    except LocalProtocolError as error:
        raise errors.ProtocolError(f"This call cannot be sent: {error}") from error


def _encode_head(head: RequestHead) -> bytes:
    try:
        return admin.encode_request_head(head)
    except LocalProtocolError as error:
        raise errors.ProtocolError(f"This call cannot be sent: {error}") from error


def _result(method: str, end: admin.Response | None) -> bytes:
    if isinstance(end, Success):
        return end.payload
    if isinstance(end, Failure):
        raise exception_from(end)
    if isinstance(end, Refused):
        raise AccessRefused(f"{method} was refused without an answer; the daemon's log says why")
    raise MalformedAnswer(f"{method} ended without a result")


def _parsed_list(untrusted_answer: bytes) -> list[dict[str, Any]]:
    answer = json.loads(answers.parse_text(untrusted_answer))
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise MalformedAnswer("insula.seed.List did not answer a list of objects")
    return answer
