"""Run MetaRepair on Ray: actor pools, Ray Train groups and Ray Tune searches. No other package of ours imports Ray.

on_ray/   connections, actor pools and contexts; pool.py says what happens when an actor dies
stages/   the Ray part of each stage; train.py says what happens when a training worker dies
search/   the search of settings on Ray Tune

`METAREPAIR` marks this package as ours: other projects also use the import name `distributed`.
"""

METAREPAIR = True
