"""Choosing actions: policies, the networks that act, the planner."""
