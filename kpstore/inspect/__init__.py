"""Questions asked of a store: is it sound, what is in it, what has changed, what are its values like."""
