"""What of each stage runs on Ray: actors, groups and tasks."""
