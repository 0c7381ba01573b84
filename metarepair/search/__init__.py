"""The space of a search, the settings of its trials, and its results: table, figures and best configuration."""
