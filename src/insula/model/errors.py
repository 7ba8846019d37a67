"""Errors that reach clients of the Admin API, under the names those clients know.

The class name *is* the wire name (admin-api §9). The tree::

    InsulaError                       anything this package refuses
    ├── QubesException                the general one
    │   ├── QubesVMNotFoundError  QubesVMAlreadyExistsError
    │   ├── QubesVMError
    │   │   ├── QubesVMInUseError  QubesVMNotStartedError  QubesVMNotRunningError
    │   │   ├── QubesVMNotPausedError  QubesVMNotHaltedError  QubesVMAlreadyStartedError
    │   │   ├── QubesVMShutdownTimeoutError  QubesNoTemplateError
    │   ├── QubesValueError ── QubesPropertyValueError
    │   ├── QubesNoSuchPropertyError  QubesFeatureNotFoundError  QubesTagNotFoundError
    │   ├── QubesLabelNotFoundError  QubesLabelInUseError  QubesInvalidLabelError
    │   ├── QubesInvalidLabelValueError  QubesInvalidTagError
    │   ├── QubesPoolInUseError  QubesPoolNotFoundError  StoragePoolException
    │   ├── QubesVolumeNotFoundError  QubesVolumeRevisionNotFoundError  QubesVolumeCopyTokenNotFoundError
    │   ├── QubesMemoryError  QubesNotImplementedError  QubesNoDesktopError
    │   ├── DeviceAlreadyAttached  DeviceNotAssigned
    ├── ProtocolError                 the call itself is malformed (not a QubesException for clients)
    └── PermissionDenied              refused by a rule or an argument outside its list

Messages are for people: they say what was wrong and with what. They never contain ``%`` formats.
"""

from __future__ import annotations


class InsulaError(Exception):
    """Base of all refusals. ``str()`` is the message shown to the user."""

    @property
    def wire_name(self) -> str:
        """Name under which Admin API clients know this error."""
        return type(self).__name__


class QubesException(InsulaError): ...


class ProtocolError(InsulaError): ...


class PermissionDenied(InsulaError): ...


class QubesVMNotFoundError(QubesException): ...


class QubesVMAlreadyExistsError(QubesException): ...


class QubesVMError(QubesException): ...


class QubesVMInUseError(QubesVMError): ...


class QubesVMNotStartedError(QubesVMError): ...


class QubesVMNotRunningError(QubesVMError): ...


class QubesVMNotPausedError(QubesVMError): ...


class QubesVMNotHaltedError(QubesVMError): ...


class QubesVMAlreadyStartedError(QubesVMError): ...


class QubesVMShutdownTimeoutError(QubesVMError): ...


class QubesNoTemplateError(QubesVMError): ...


class QubesNoDesktopError(QubesException):
    """There is nowhere to show windows. Ours: published clients take it for the general one."""


class QubesValueError(QubesException): ...


class QubesPropertyValueError(QubesValueError): ...


class QubesNoSuchPropertyError(QubesException): ...


class QubesFeatureNotFoundError(QubesException): ...


class QubesTagNotFoundError(QubesException): ...


class QubesInvalidTagError(QubesException): ...


class QubesLabelNotFoundError(QubesException): ...


class QubesLabelInUseError(QubesException): ...


class QubesInvalidLabelError(QubesException): ...


class QubesInvalidLabelValueError(QubesException): ...


class QubesPoolInUseError(QubesException): ...


class QubesPoolNotFoundError(QubesException): ...


class StoragePoolException(QubesException): ...


class QubesVolumeNotFoundError(QubesException): ...


class QubesVolumeRevisionNotFoundError(QubesException): ...


class QubesVolumeCopyTokenNotFoundError(QubesException): ...


class QubesMemoryError(QubesException): ...


class QubesNotImplementedError(QubesException): ...


class DeviceAlreadyAttached(QubesException): ...


class DeviceNotAssigned(QubesException): ...
