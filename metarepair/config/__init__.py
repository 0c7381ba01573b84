"""The settings of a run: frozen, strict, each described with its unit and range."""
