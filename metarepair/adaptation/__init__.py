"""Algorithm 1, lines 13-23: how a DNN is adapted to a target's collected failures."""
