"""Wrong settings that only `score` uses are refused before any mining."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarepair.cli import main


@pytest.mark.parametrize("verb", ["run", "mine", "score"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["features.bootstrap=39"], "at least 40, or 0"),
        (["features.extrapolate=true"], "mining.collect of at least 20"),
        (["features.extractor=timm:"], "give one word"),
        (["features.extractor=timm:resnet1B", "features.weights=here.pth"], "did you mean"),
        (["features.extractor=timm:resnet18"], "timm:resnet18 needs a weights file"),
        (["features.extractor=timm:resnet18", "features.weights=nowhere.pth"], "nowhere.pth is not a file"),
        (["features.extractor=inception", "features.weights=nowhere.pth"], "no FID Inception weights"),
        (["features.weights=here.pth"], "features.weights=here.pth would not be read"),
    ],
)
def test_a_wrong_score_setting_is_refused_before_mining(
    tmp_path: Path,
    tiny_settings: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    settings: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(tiny_settings.replace("collect: 20", "collect: 19"), encoding="utf-8")
    Path("here.pth").write_bytes(b"")
    changes = [argument for setting in settings for argument in ("--set", setting)]
    assert main([verb, "--config", "tiny.yaml", "--storage", "runs", *changes]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
