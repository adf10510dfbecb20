"""`dreamfleet compare`: groups of runs beside each other."""
