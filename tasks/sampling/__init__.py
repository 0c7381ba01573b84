"""How tasks are drawn: confidence in each experience, and semantic-cover tasks."""
