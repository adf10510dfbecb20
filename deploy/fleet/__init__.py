"""The fleet loop: who collects, who trains, and who replaces a lost worker."""
