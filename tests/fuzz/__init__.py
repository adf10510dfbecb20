"""Fuzzing: see `__main__.py` and `test_fuzz.py`."""
