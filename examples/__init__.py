"""DNNs of others, as a user would bring them: a factory each, named by its import path."""
