"""Adapts a DNN to a target's collected failures (paper Algorithm 1, lines 13-23).

repair_data.py   the images that a repair may see, and the support batches drawn from them (lines 14-15)
meta_test.py     the walk over tasks: how θ is adapted (lines 13-21)
choice.py        which of the adapted parameters are kept
accuracy.py      what adapted parameters predict
"""
