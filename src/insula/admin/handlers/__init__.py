"""Admin API handlers, one file per noun."""
