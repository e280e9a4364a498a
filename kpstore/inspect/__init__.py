"""Questions asked of a store: whether it is sound, what it holds, and what has changed."""
