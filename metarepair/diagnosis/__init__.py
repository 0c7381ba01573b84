"""Tells what is wrong in an environment before a repair: accuracy, what it is like, suspicious labels."""
