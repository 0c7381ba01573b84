"""Choose the settings of `metarepair fix` from what a user has, from a time budget, and from how fast this machine is.

speeds.py    measure the machine with the user's own model, within ten seconds
plan.py      turn speeds, counts and the budget into counts: steps, epochs, episodes (a pure function)
settings.py  write a plan as the settings of a run
"""
