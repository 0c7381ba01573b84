"""A run, a stage or one of its files in; what it holds, and whether its checksums hold, out. Changes nothing.

inspect.py   the way through: stages, checksums, what is told
places.py    which stages are under a path
checks.py    manifests and checksums: the state of each file
stages.py    one stage's counts, settings, versions
details.py   what only one kind of stage has: severities and classes, confidence, episodes, methods
headers.py   what the header of an .arrow, .parquet or .safetensors file says
files.py     one such file by its own path
facts.py     what is told, as records
text.py      … for a person, with tables.py
sheet.py     … for the eye: a contact sheet of collected failures
command.py   … on the command line

D_fail stays closed: its checksum is taken of bytes, its counts are the manifest's, and its pixels, labels and
predictions are not looked at; nor are those of samples.parquet, or of parts that are not split yet.

`metarepair inspect PATH --json` prints one object. Its keys, which stay:

    schema_version   1
    path             the inspected path, absolute
    kind             run | folder (experiences, features, …) | file | environment | features | score | meta | repaired |
                     deployed | hypothesis | prepared | compared
    finished         true when there are stages, and each has its manifest; null for a file
    size_bytes       of everything under the path
    d_fail_reads     how often the run's evaluator opened a D_fail; null but for a run that has the log
    damaged          list of {path, state, remedy}; empty when all is well, else the exit code is 2
    stages           list of: path (relative), kind, role (experience | target | null), name (corruption, target,
                     method, TARGET/METHOD/SEED of a comparison, or null), finished, manifest (ok | missing | damaged),
                     written (ISO 8601, the manifest file's time), size_bytes, settings (digest of config), result
                     (digest that later stages depend on), config, inputs, rows, versions,
                     files: list of {name, size_bytes, promised_bytes, state}, state being
                         ok | differs | missing | unreadable | unchecked (nothing promises a checksum),
                     details: null, or by kind
                         environment  pixels (stored | recomputed | null), parts (null when finished), severities
                                      ({"1": {examined, correct, accuracy, failures, collected}}),
                                      collected_per_class ({class: count}), classes_named
                         features     extractor, dim (numbers an image)
                         score        confidence ({target: {experience: p}}), effective_number ({target: number})
                         meta         episodes, episodes_wanted, skipped_episodes, seconds, validation_accuracy,
                                      checkpoints (list of {path, episode, whole})
                         repaired, compared  methods (list of {method, target, seed, d_fail, corrupted, clean}; one
                                      for a repair of a comparison, null in it what is not judged), weights (list)
                         deployed     clean_test_accuracy, epochs
    file             null, or {name, format (failures | parquet | safetensors), size_bytes, promised_bytes, state,
                     promised_by (a manifest or null), header ({key: value}), collected_per_severity,
                     collected_per_class} (counts for a collect.arrow alone)

What is not known is null.
"""
