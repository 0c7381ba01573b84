"""Speed and memory against peers: each file prints ratios that were taken in one run on one machine."""
