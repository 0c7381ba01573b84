"""Trains θ_meta on repairing experiences (paper Algorithm 1, lines 2-12).

meta_train.py    the loop over episodes: gradients of all tasks, then one outer step (lines 2-12)
task_source.py   the tasks of an episode, and their shares for the workers (lines 4-6)
outer.py         the outer optimizer and its schedules (lines 10-11)
theta_meta.py    reads θ_meta back as the start of a repair
inputs.py        where meta-training reads its data

The inner loop and its gradient (lines 7-10) are in metarepair.engine; the confidence of experiences (line 1) is in
tasks.sampling.confidence.
"""
