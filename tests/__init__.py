"""Tests and benchmarks: a package, since others install one called `tests`, which would hide a mere folder."""
