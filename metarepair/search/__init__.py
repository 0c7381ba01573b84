"""A search's settings in; its space, its trials' settings, and its table, figures and best configuration out."""
