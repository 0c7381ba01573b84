"""A run's folder in; how far it is, from its storage alone, out. No Ray, no model, nothing changed, nothing hashed.

look.py      the way through
runs.py      a path that is a run, or why it is none
facts.py     what is told, as records
members.py   one stage of one environment or target: how much of it is there
unused.py    environments that the run no longer uses
compare.py   a comparison, by target
stages.py    all of them by stage, also those that are not begun, and the time left
search.py    trials of a search
text.py      … for a person, on one screen
command.py   … on the command line

What is counted is what would be kept if the run were killed now: manifests, sealed parts, checkpoints. Sizes are
compared with what manifests promise; `metarepair inspect` compares checksums, too.

`metarepair status RUN --json` prints one object. Its keys, which stay:

    schema_version   1
    path             the run's folder
    state            finished | under way (somebody writes there) | unfinished (nobody does) | not begun
    holder           null, or {host, pid, verb, since (ISO 8601), last_sign_s (seconds ago), alive}: who writes there,
                     or died there without an end
    d_fail_reads     how often the run's evaluator opened a D_fail; null where it has no log
    damaged          list of {path, state, remedy}; empty when all is well, else the exit code is 2
    stages           list of {name (pretrain | mine | features | score | train | repair | report | prepare | compare |
                     hypothesis), state (done | begun | not begun), done, total (of members), seconds_left, members},
                     members being a list of {path (relative), name (of the environment, target or prepared method, or
                     null), role (experience | target | null), state, done, total (of its units), unit (shards |
                     episodes | repairs | epochs | fine-tunes | pieces | null), judged (repairs of a comparison, else
                     null), written (ISO 8601, of its newest file), metrics ({name: number}, of its newest checkpoint),
                     seconds_left, passed_over (checkpoints that are not whole)}
    search           null, or {state, trials ({finished | stopped early | failed | running | unfinished: count}), total,
                     best, running}, best being null or {name, state, objective}, running (also of the unfinished) a
                     list of {name, rounds, of (so many), objective (after these), written}
    unused           list of paths (relative) of environments that are not counted: neither the score nor the plan of a
                     comparison, both written after them, names them

What is not known is null.
"""
