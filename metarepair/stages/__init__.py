"""The stages of a run, and what runs them.

pipeline.py       the stages of a run in order: mine, score, train, repair, report
mining.py         failures of every environment
features.py       features of every environment; with distances.py, the parts of score.py
score.py          distances of all pairs, and confidence
train.py          meta-training for one target; metarepair.meta_training.task_source draws its tasks
pretrain.py       `metarepair pretrain`
compare.py        `metarepair compare`
hypothesis.py     `metarepair hypothesis`
search_inputs.py  what the trials of `metarepair tune` read
search_trial.py   one trial of `metarepair tune`
executor.py       where the pieces of a stage run: in this process, or on Ray by `distributed.stages.executor`
together.py       pieces that run concurrently

`tasks.storage.stages` has the table of all stages; `metarepair.repairs.stage` repairs for one target.
"""
