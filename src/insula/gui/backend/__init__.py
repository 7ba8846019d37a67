"""What shows windows: ``qt`` on X11 and Wayland desktops, ``qt_window`` one window of it, ``qt_loop`` its event loop,
``x11`` what only X11 needs.

A fake one for tests is in :mod:`insula.testing.gui_screen`.
"""
