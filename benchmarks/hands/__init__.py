"""Hands in labelled frames: what eyes see, and what detectors find."""
