"""Random faults of many kinds, each of which has to end in an allowed way."""
