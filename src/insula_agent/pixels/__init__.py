"""Documents and images that are opened elsewhere: a disposable parses them, only pixels come back."""
