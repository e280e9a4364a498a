"""Faults on purpose, many of them, at random but seeded: what kpstore promises to survive, counted."""
