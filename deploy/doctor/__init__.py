"""`dreamfleet doctor`: checks machines against what a run needs."""
