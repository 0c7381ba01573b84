"""Options, output and checks of the command line, and the verbs `doctor` and `export`."""
