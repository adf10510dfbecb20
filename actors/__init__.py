"""Actors: environments, wrappers, collecting and evaluating."""
