"""QEMU driver: one sandboxed VMM process per qube, driven over QMP."""
