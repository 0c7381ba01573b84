"""What lies in a run's storage, for `inspect` and `status`: one reader, two records, each as text or as JSON.

Read by both:
    paths.py         what a path names: a run, a part of one, or what is near
    walk.py          every file under it, and the stages that these files make
    stored.py        what a stage's folder says of itself: its manifest, or the mark of its beginning
    damage.py        what is damaged, and what to do
    facts.py         the records that are shown

`inspect`, every byte:
    inspect.py       the way through; the keys of its JSON
    checksums.py     the state of each file
    details.py       what only one kind of stage has: severities and classes, confidence, episodes, methods
    files.py         one file by its own path, with headers.py
    inspect_text.py  the text, with tables.py
    sheet.py         a contact sheet of collected failures

`status`, sizes and times alone:
    status.py        the way through; the keys of its JSON
    members.py       how far one stage of one environment or target is
    progress.py      all stages, also those that are not begun, and the time left
    comparison.py    a comparison, by target
    search.py        the trials of a search
    unused.py        environments that the run no longer uses
    status_text.py   the text

command.py           both, on the command line
"""
