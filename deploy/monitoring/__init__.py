"""What a run tells: log, metrics, TensorBoard, Prometheus, status."""
