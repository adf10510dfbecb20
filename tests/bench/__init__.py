"""The benchmark: `python -m tests.bench` measures each part beside its yardstick and writes docs/results/."""
