"""The commands that play a run: train, collect, evaluate, dream."""
