"""Compare repair methods on the same failures, for every target and seed, in one report.

units.py      one repair, by a method for a target with a seed: its weights and its cost
prepare.py    what a method prepares before any target is known
seeds.py      a run of its own for each seed, to vary mining and preparation with the repair
plan.py       the planned repairs, for `metarepair status`
check.py      refuse a comparison that cannot finish, before any work starts
judge.py      judge repaired DNNs on D_fail, clean and corrupted images; no other module here opens D_fail
parts.py      the sentences and tables of the report, with the paper's numbers beside ours
results.py    the report as Markdown and HTML; all rows as CSV and Parquet
figures.py    a bar chart, and a radar chart over the corruptions
pair.py       two methods, example by example
"""
