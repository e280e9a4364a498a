"""Parts of a store, shaped for training; nothing is read before it is asked for."""
