"""Learner: losses, the training step, checkpoints, publishing, pictures."""
