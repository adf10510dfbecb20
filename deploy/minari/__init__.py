"""Replays exported as Minari datasets, and imported from them."""
