"""Typed events and the bus. Events report what was done; nothing happens *because* of them."""
