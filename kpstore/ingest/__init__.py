"""Extracts features from a source into a store: plans, runs in parallel, merges, commits.

A run that was killed resumes without loss.
"""
