"""Checkpoints: written, copied to a URL, found, and loaded again."""
