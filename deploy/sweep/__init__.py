"""`dreamfleet sweep`: a table of settings and seeds as runs of their own."""
