"""What becomes of a store when things go wrong: many random faults, each of which has to end in an allowed way."""
