"""Compare mined error rates with the published rates on CIFAR-10-C."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import cifar10c_errors
from tasks.errors import DataError
from tasks.storage.manifest import write_manifest


def mined(run, name, errors):
    folder = run / "targets" / name
    folder.mkdir(parents=True)
    examined = {str(s): 1000 for s in range(1, 6)}
    correct = {str(s): 1000 - round(10 * e) for s, e in enumerate(errors, start=1)}
    facts = {"examined": examined, "correct": correct, "seconds": {"corrupt": 0.05, "classify": 1.0}}
    write_manifest(folder, stage=f"mine target {name}", config={}, inputs={}, files=[], facts=facts)


def test_the_published_rates_agree_with_themselves_and_not_with_others(tmp_path, monkeypatch, capsys):
    published = cifar10c_errors.published_errors("Standard")
    assert len(published) == 15
    for name, errors in published.items():
        mined(tmp_path, name, errors)
    manifests = cifar10c_errors.mined_manifests(tmp_path)
    ours = cifar10c_errors.mined_errors(manifests)
    for name, errors in ours.items():
        assert errors == pytest.approx(published[name], abs=0.06)
    assert min(cifar10c_errors.agreement(ours, published).values()) > 0.99
    turned = {name: errors[::-1] for name, errors in ours.items()}
    assert cifar10c_errors.agreement(turned, published)["spearman_within_mean"] < -0.8
    others = dict(zip(ours, [50 - np.asarray(e) / 2 for e in ours.values()], strict=True))
    assert cifar10c_errors.agreement(others, published)["spearman_of_means"] < -0.99
    monkeypatch.setattr(sys, "argv", ["cifar10c_errors", str(tmp_path)])
    cifar10c_errors.main()
    printed = capsys.readouterr().out
    assert "| fog | 5.5 6.4 7.7 10.4 26.0 | 11.2 | 5.5 6.4 7.7 10.4 26.0 | 11.2 | 10.0 |" in printed


def test_a_run_without_mined_targets_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no mined target"):
        cifar10c_errors.mined_manifests(tmp_path)
