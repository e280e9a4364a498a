"""Views: data sets for training, which read a store when samples are requested."""
