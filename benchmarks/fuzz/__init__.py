"""Fuzzing: mutated files are read as people read them; at most one clear line may follow."""
