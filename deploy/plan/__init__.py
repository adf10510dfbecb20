"""`dreamfleet plan`: what a run moves and holds, how long it takes, and what limits it."""
