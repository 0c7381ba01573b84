"""Measure speed and memory against peers; each file prints ratios measured in one run on one machine."""
