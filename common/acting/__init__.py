"""Choosing actions: policies, the actor, the planner, and weights as they travel to the actors."""
