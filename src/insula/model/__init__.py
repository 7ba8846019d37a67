"""What a system is: frozen values and parsing, no I/O. Everything else imports this; it imports nothing."""
