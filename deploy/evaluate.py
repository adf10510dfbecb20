"""`dreamfleet eval`: plays episodes with a run's policy, and says how they went."""
