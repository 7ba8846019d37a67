"""Hypervisor abstraction layer: one driver interface, declared capabilities, one contract suite.

Nothing outside this folder knows which hypervisor runs.
"""
