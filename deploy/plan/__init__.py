"""`dreamfleet plan`: what a run will move, hold and take, worked out or measured beforehand."""
