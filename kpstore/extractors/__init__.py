"""Models that turn frames into features."""
