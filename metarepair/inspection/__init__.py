"""Read a run's storage for `inspect` and `status`, and show it as text or JSON.

Shared by both commands:
    paths.py         check that a path names a run or part of one; suggest near names if not
    walk.py          list all files and find the stages among them
    stored.py        read a stage's manifest, or its start mark if it is unfinished
    damage.py        find damage and name its remedy
    facts.py         the records that are shown

`inspect` reads every byte:
    inspect.py       the entry point; documents the JSON keys
    checksums.py     check each file against its checksum
    details.py       facts specific to one kind of stage: severities, classes, confidence, episodes, methods
    files.py         inspect a single file, with headers.py
    inspect_text.py  the text output, with tables.py
    sheet.py         a contact sheet of collected failures

`status` reads only file sizes, file times and small JSON files:
    status.py        the entry point; documents the JSON keys
    members.py       progress of one stage for one environment or target
    progress.py      progress of all stages, including those not started, and the time left
    comparison.py    progress of a comparison, by target
    search.py        the trials of a search
    unused.py        environments that the run no longer uses
    status_text.py   the text output

command.py           run both from the command line
"""
