"""The settings of a run: frozen, strict, each with its unit and range."""
