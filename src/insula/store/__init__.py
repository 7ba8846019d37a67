"""The system state on disk: loaded once, changed in transactions, by one writer."""
