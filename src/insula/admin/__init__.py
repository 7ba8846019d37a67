"""The published Admin API: defined once in ``api``, server and client derived from it."""
