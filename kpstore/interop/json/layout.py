"""Names that reading and writing JSON share."""

FORMAT = "json"
REST = "person_fields"
"""Annotation that keeps, as JSON, what else the record of a person holds; empty if nothing."""
