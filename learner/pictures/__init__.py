"""Pictures of what a model sees and predicts."""
