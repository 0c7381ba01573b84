"""Experiences: the failures of a deployed DNN under a corruption, mined, stored and read again."""
