"""Experiences: mining, storing and reading the failures of a deployed DNN under a corruption."""
