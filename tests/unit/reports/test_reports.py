"""Test the report of a made-up run: its content, its refusals, and fair verdicts in either direction."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from made_result import made_result
from metarepair.reports import figures, load_results
from metarepair.reports.html import write_report
from metarepair.reports.paper import TABLE_1, TABLE_2, nearest_experiences, table_for
from metarepair.reports.table import results_table, rows_table, spread, verdict, write_tables
from metarepair.runs.layout import Run
from tasks.corruptions import CORRUPTIONS, category_of
from tasks.errors import DataError, StageError
from tasks.experiences.store import write_failures
from tasks.keys import keyed_generator
from tasks.records import FID_SCHEMA, Failures

HOSTILE = "<script>alert('x')</script>"


def change(result: dict[str, Any], method: str, **values: float) -> None:
    for row in result["methods"]:
        if row["method"] == method:
            row.update(values)


def made_run(root: Path, target: str = "gaussian_noise") -> Run:
    """Write a run folder with everything that the report may read."""
    run, generator = Run(root), keyed_generator("made", 0)
    for name in (run.repaired(target), run.meta(target), run.score):
        name.mkdir(parents=True)
    write_failures(run.target(target) / "fail.arrow", fail := made_failures(target))
    after = np.where(np.arange(40) % 2 == 0, fail.labels_N, fail.predicted_N)
    columns = {
        "method": ["metarepair"] * 40,
        "seed": [0] * 40,
        "image_id": fail.image_ids_N,
        "severity": fail.severities_N,
        "label": fail.labels_N,
        "before": fail.predicted_N,
        "after": after,
    }
    pa.parquet.write_table(pa.table(columns), run.repaired(target) / "samples.parquet")
    curve = [
        {"episode": e, "query_loss": 2.0 / (1 + e), "query_accuracy": 0.3 + 0.01 * e, "gradient_norm": 1.0}
        | ({"validation_accuracy": 0.3 + 0.008 * e} if e % 5 == 4 else {})
        for e in range(20)
    ]
    (run.meta(target) / "metrics.json").write_text(json.dumps(curve), encoding="utf-8")
    names = ["gaussian_noise", "shot_noise", "glass_blur", "snow"]
    pairs = [(a, b, float(generator.uniform(1, 10))) for a in names for b in names if a != b]
    scores = [
        {"experience": a, "target": b, "distance": q, "extractor": "e", "num_experience": 9, "num_target": 9}
        for a, b, q in pairs
    ]
    pa.parquet.write_table(pa.Table.from_pylist(scores, FID_SCHEMA), run.score / "fid.parquet")
    return run


def made_failures(target: str) -> Failures:
    generator = keyed_generator("failures", 1)
    labels = generator.integers(0, 10, 40)
    return Failures(
        corruption=target,
        image_ids_N=np.arange(40, dtype=np.int64),
        severities_N=np.arange(40, dtype=np.int64) % 5 + 1,
        labels_N=labels,
        predicted_N=(labels + 3) % 10,
        images_NHWC=generator.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8),
    )


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


def words(svg: bytes) -> str:
    """The text of an SVG, which is text and not paths."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_page_holds_the_numbers_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    for earlier in ("heatmap.png", "gaussian_noise_methods.png", "gaussian_noise_old.csv"):
        (run.report / earlier).parent.mkdir(exist_ok=True)
        (run.report / earlier).write_text("of an older version")
    page = write_report(run, [made_result()]).read_text(encoding="utf-8")
    for text in (
        "45.3 ± 1.0",
        "42.1 ± 1.0",
        "40.3",
        "73.51",
        "321.5 s",
        "201 of the 1000",
        "MetaRepair is better than",
    ):
        assert text in page, text
    assert page.count("data:image/png;base64,") == 1
    assert page.count('<svg role="img" aria-label="') == 4
    assert "data:image/svg" not in page
    assert "http" not in page
    assert "<script" not in page
    assert sorted(p.name for p in run.report.iterdir()) == [
        "gaussian_noise_confidence.svg",
        "gaussian_noise_examples.png",
        "gaussian_noise_methods.svg",
        "gaussian_noise_severity.svg",
        "gaussian_noise_training.svg",
        "index.html",
        "results.csv",
        "results.parquet",
        "table.md",
    ]


def test_names_from_outside_are_escaped_and_stay_in_the_report_folder(tmp_path: Path) -> None:
    run, result = Run(tmp_path), made_result()
    result["experiences"][0]["name"] = HOSTILE
    result["config"]["name"] = HOSTILE
    for row in result["methods"]:
        row["target"] = HOSTILE
        row["method"] = HOSTILE if row["method"] == "bn_adapt" else row["method"]
    page = write_report(run, [result]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "<script" not in (run.report / "table.md").read_text(encoding="utf-8")
    assert all(not p.is_dir() for p in run.report.iterdir())


def test_page_says_what_is_missing_instead_of_leaving_it_out(tmp_path: Path) -> None:
    page = write_report(Run(tmp_path), [made_result()]).read_text(encoding="utf-8")
    for missing in (
        "meta/gaussian_noise/metrics.json",
        "targets/gaussian_noise/fail.arrow",
    ):
        assert f"{missing} is missing" in page


def test_page_shows_every_target_with_the_paper_only_where_it_has_a_number(tmp_path: Path) -> None:
    results = [made_result("gaussian_noise"), made_result("snow")]
    page = write_report(Run(tmp_path), results).read_text(encoding="utf-8")
    assert "62.16" in page
    assert "score/fid.parquet is missing" in page
    assert "The paper has no number for snow on cifar10" in page
    assert pa.parquet.read_table(tmp_path / "report" / "results.parquet").num_rows == 24


def test_table_has_a_row_per_method_in_words_with_seeds_pooled() -> None:
    lines = [line for line in results_table(made_result()).splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "before repair",
        "fine-tuned",
        "BN-adapted",
        "MetaRepair",
    ]
    cells = [cell.strip() for cell in lines[5].split("|")[2:-1]]
    assert cells == [
        "45.3 ± 1.0",
        "68.3 ± 1.0",
        "91.1 ± 0.0",
        "60.0 ± 0.0",
        "3.4 ± 0.0",
        "8.7 ± 0.0",
        "13.5 ± 1.0",
        "123,400",
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_of_one_seed_claims_no_spread_and_the_paper_measure_follows() -> None:
    text = results_table(made_result(seeds=(1,)))
    row = next(line for line in text.splitlines() if line.startswith("| MetaRepair"))
    assert "±" not in row
    assert "MetaRepair: mean acc_s 40.3%; on all of D_fail at the end of an episode 43.3% ± 1.3" in text
    assert "before repair: mean acc_s" not in text
    assert "There is only one seed" in text


def test_verdict_states_the_gain_and_that_clean_accuracy_was_kept() -> None:
    text = "\n".join(verdict(made_result()))
    assert (
        "MetaRepair is better than fine-tuned on D_fail: 45.3% against 42.1%, +3.2 points; better in 3 of 3"
        in text
    )
    assert (
        "Accuracy in the target's environment rose: 51.2% before, 68.3% after MetaRepair, +17.1 points"
        in text
    )
    assert "Clean accuracy was maintained: 91.5% before, 91.1% after MetaRepair, −0.4 points" in text
    assert "Compared with fine-tuned, clean accuracy is higher: 91.1% for MetaRepair, 89.0%" in text


def test_verdict_flips_when_metarepair_is_worse_and_clean_accuracy_falls() -> None:
    result = made_result()
    change(result, "metarepair", d_fail=0.25, clean=0.80, corrupted=0.45)
    text = "\n".join(verdict(result))
    assert "MetaRepair is worse than fine-tuned on D_fail" in text
    assert "−17.1 points; better in 0 of 3 seeds" in text
    assert "Accuracy in the target's environment fell" in text
    assert "Clean accuracy fell: 91.5% before, 80.0% after MetaRepair, −11.5 points" in text
    assert "Compared with fine-tuned, clean accuracy is lower" in text


def test_verdict_calls_a_tie_a_tie_and_names_a_better_third_method() -> None:
    result = made_result(seeds=(1,))
    change(result, "metarepair", d_fail=0.4212)
    change(result, "bn_adapt", d_fail=0.6)
    text = "\n".join(verdict(result))
    assert "MetaRepair is equal to fine-tuned on D_fail" in text
    assert "Another method is best on D_fail: BN-adapted with 60.0%" in text


def test_verdict_calls_no_method_best_that_is_only_as_good_as_metarepair() -> None:
    result = made_result(seeds=(1,))
    change(result, "metarepair", d_fail=0.6)
    change(result, "bn_adapt", d_fail=0.6 + 1e-9)
    assert "Another method" not in "\n".join(verdict(result))


def test_verdict_without_metarepair_says_so() -> None:
    result = made_result()
    result["methods"] = [row for row in result["methods"] if row["method"] != "metarepair"]
    assert verdict(result) == ["MetaRepair was not run for this target, so there is no verdict on it."]


def test_spread_is_the_sample_standard_deviation_of_what_was_measured() -> None:
    found = spread([0.1, None, 0.2, float("nan"), 0.6])
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.sd == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert spread([None]) is None


def test_rows_of_all_targets_read_back_equal_from_csv_and_parquet(tmp_path: Path) -> None:
    results = [made_result(), made_result("zoom_blur", seeds=(4,))]
    results[1]["methods"][0]["other_corruptions"]["frost"] = 0.25
    csv, parquet = write_tables(tmp_path / "report", results)
    expected = rows_table(results)
    assert pa.parquet.read_table(parquet).equals(expected)
    read = pa.csv.read_csv(csv, convert_options=pa.csv.ConvertOptions(column_types=expected.schema))
    assert read.equals(expected)
    assert expected.num_rows == 16
    assert expected["other_frost"].to_pylist() == [None] * 12 + [0.25, None, None, None]
    assert expected["d_fail_paper"].to_pylist()[:2] == [None, None]
    assert expected["corrupted_severity_5"].to_pylist()[0] == pytest.approx(0.512 - 0.12)


def test_missing_result_is_a_stage_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"fog is not repaired yet.*metarepair repair --config"):
        load_results(Run(tmp_path), ["fog"])
    with pytest.raises(StageError, match=r"no results.*metarepair repair --config"):
        write_report(Run(tmp_path), [])


def test_results_are_loaded_unless_damaged_or_of_another_schema(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.repaired("fog") / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(made_result("fog")), encoding="utf-8")
    assert load_results(run, ["fog"]) == [made_result("fog")]
    path.write_text(json.dumps(made_result("fog") | {"schema_version": 2}), encoding="utf-8")
    with pytest.raises(StageError, match="schema_version 2"):
        load_results(run, ["fog"])
    path.write_text('{"schema_version": 1, "meth', encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        load_results(run, ["fog"])


def test_heat_map_draws_19_environments_and_leaves_unknown_pairs_grey() -> None:
    names = list(CORRUPTIONS)
    scores = {(a, b): 1.0 + abs(i - j) for i, a in enumerate(names) for j, b in enumerate(names) if i < j}
    whole = pixels(figures.heat_map(scores, names, category_of, "Distances", "FID"))
    some = {pair: q for pair, q in scores.items() if "fog" not in pair}
    holed = pixels(figures.heat_map(some, names, category_of, "Distances", "FID"))
    grey = [(image == 0xCC).all(axis=-1).mean() for image in (whole, holed)]
    assert grey[1] > 2 * grey[0] > 0


def test_heat_map_takes_a_pair_given_one_way_for_both() -> None:
    names, scores = ["fog", "snow"], {("fog", "snow"): 3.0}
    both = scores | {("snow", "fog"): 3.0}
    one_way = figures.heat_map(scores, names, category_of, "t", "l")
    assert one_way == figures.heat_map(both, names, category_of, "t", "l")
    assert one_way != figures.heat_map({}, names, category_of, "t", "l")


def test_figures_show_something_and_change_with_the_numbers() -> None:
    result, other = made_result(), made_result()
    change(other, "metarepair", d_fail=0.1)
    other["methods"][-1]["corrupted_by_severity"]["3"] = 0.1
    other["experiences"][0]["p"] = 0.9
    title = "cost in $ and $"
    for draw in (
        lambda r: figures.method_bars(r, title),
        lambda r: figures.severity_curve(r, title),
        lambda r: figures.confidence_bars(r["experiences"], title, "FID"),
    ):
        assert {"MetaRepair", "t"} <= set(words(draw(result)).split()) or "cost in $ and $" in words(
            draw(result)
        )
        assert draw(result) == draw(made_result()) != draw(other)


def test_training_curve_takes_a_run_without_validation() -> None:
    metrics = [{"episode": 0, "query_loss": 2.0, "query_accuracy": 0.2, "gradient_norm": 1.0}]
    assert "episode" in words(figures.training_curve(metrics, "t"))


@pytest.mark.parametrize("repaired", [0, 3, 40])
def test_examples_are_drawn_when_none_some_or_all_are_repaired(repaired: int) -> None:
    fail = made_failures("fog")
    after = np.where(np.arange(40) < repaired, fail.labels_N, fail.predicted_N)
    assert pixels(figures.examples(fail, after, ["a$b$", "c_d"], "t")).std() > 5


def test_the_paper_table_has_seven_targets_and_the_best_values_read_from_the_paper() -> None:
    assert table_for("cifar10") is table_for("cifar10_sample") is TABLE_1
    assert table_for("tiny_imagenet") is TABLE_2
    assert table_for("cifar100") is None
    assert TABLE_1.column("zoom_blur")["MetaRepair"] == 89.45
    best = [
        max(v for m, v in TABLE_2.column(t).items() if m != "MetaRepair") for t in TABLE_2.rows["MetaRepair"]
    ]
    assert best == [18.85, 14.09, 17.09, 16.94, 15.07, 17.12, 14.76]
    assert nearest_experiences("cifar10", "fog")[0] == "saturate"
    assert TABLE_1.column("snow") == {}
    assert nearest_experiences("tiny_imagenet", "fog") == ()


def without_metarepair(*methods: str) -> dict[str, Any]:
    """Return a result as `metarepair repair` writes it for these methods: no experiences, one seed."""
    result = made_result(seeds=(0,))
    result["methods"] = [row for row in result["methods"] if row["method"] in methods]
    del result["confidence"], result["preparation"]
    return result | {"features": "none", "distance_name": "none", "experiences": []}


@pytest.mark.parametrize("methods", [("none", "finetune"), ("none",)])
def test_without_metarepair_the_page_leaves_out_experiences_and_meta_training(
    tmp_path: Path, methods: tuple[str, ...]
) -> None:
    run = made_run(tmp_path)
    page = write_report(run, [without_metarepair(*methods)]).read_text(encoding="utf-8")
    assert "none between environments" not in page
    assert "Feature extractor of the distance" not in page
    assert "No experiences were used: MetaRepair, which learns from them, was not run." in page
    assert "these rows involve no meta-training" in page
    assert "Meta-training by episode" not in page
    assert "error bars" not in page, "there is one seed"
    assert ("Nothing was learned from the 1000 examples" in page) == (methods == ("none",))
    assert ("methods may learn from the rest" in page) == ("finetune" in methods)


def test_distances_between_environments_are_drawn_for_several_targets(tmp_path: Path) -> None:
    run, results = made_run(tmp_path), [made_result("gaussian_noise"), made_result("snow")]
    page = write_report(run, results).read_text(encoding="utf-8")
    assert "Fréchet distance in e features between environments" in page
    assert '<a href="#snow">snow</a>' in page
    assert (run.report / "heatmap.png").is_file()


def test_numbers_on_the_page_are_rounded(tmp_path: Path) -> None:
    result = made_result()
    result["confidence"] |= {"effective_number": 2.9999999999999996, "alpha": 0.4123456789, "beta": 2.0}
    page = write_report(made_run(tmp_path), [result]).read_text(encoding="utf-8")
    assert "rule hinge, alpha 0.4123, beta 2, effective number 3." in page
    text = page.partition("<pre>")[0]
    pictures = re.compile(r"base64,[^\"]*|<svg .*?</svg>", re.DOTALL)
    assert re.findall(r"\d\.\d{5,}", pictures.sub("", text)) == []


def test_accuracy_at_the_end_of_an_episode_has_a_spread_only_with_several_episodes() -> None:
    result = made_result(seeds=(0,))
    change(result, "finetune", d_fail_episodes_sd=None)
    text = results_table(result)
    assert "fine-tuned: mean acc_s 37.1%; on all of D_fail at the end of an episode 40.1%\n" in text
    assert "at the end of an episode 43.3% ± 1.3 over episodes\n" in text


def test_a_truncated_table_is_named_without_pyarrows_message(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    samples = run.repaired("gaussian_noise") / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-20])
    with pytest.raises(DataError, match="samples") as refused:
        write_report(run, [made_result()])
    assert "not a whole Parquet file" in str(refused.value)
    assert str(refused.value).endswith("Repair again: metarepair repair --config FILE --restart.")
    assert "magic" not in str(refused.value)
