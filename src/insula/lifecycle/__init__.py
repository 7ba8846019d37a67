"""What is done with qubes: create, start, stop, clone, remove; decide first (plan), then act in order."""
