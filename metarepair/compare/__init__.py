"""Methods, targets and seeds in; one table of how they do on the same failures out.

units.py      one repair: by a method, for a target, with a seed; its weights and what it took
prepare.py    what a method makes before any target is known
plan.py       how many repairs there will be, for those who look on
check.py      what is refused before anything has begun
judge.py      repaired DNNs on D_fail, clean and corrupted images; the only one to open D_fail
parts.py      the sentences and tables of the report, the paper's numbers beside ours
results.py    the report as Markdown and HTML; all rows as CSV and Parquet
figures.py    bars, and a radar over the corruptions
pair.py       two methods, example by example
"""
