"""Show the metrics of runs and trainings in TensorBoard, MLflow and Weights & Biases."""
