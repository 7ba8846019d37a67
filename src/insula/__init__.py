"""Insula: security by isolation. The host side.

Rooms, in import order (``tests/unit/test_imports.py`` holds them to it):

``model`` ``events``                     what a system is; no I/O
``store hal storage policy devices net preload`` one concern each
``lifecycle rpc gui backup updates templates``  what is done with them
``admin extensions``                     the published interface
``daemon cli manager``                   processes people start
``testing``                              fakes and checks, imported by tests only
"""

__version__ = "0.1.0"
