"""Fakes and checks for tests; the product never imports this."""
