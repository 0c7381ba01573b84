"""Define example DNNs from outside the project, each with a factory that is named by its import path."""
