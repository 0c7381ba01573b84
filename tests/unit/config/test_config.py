"""Check that valid settings parse to their values and that invalid ones are refused with a remedy."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from metarepair.config.load import known_keys, load_config, parse_config
from metarepair.config.run import Config
from tasks.errors import ConfigError

SHIPPED = [
    path
    for path in sorted((Path(__file__).parents[3] / "tune_configs").glob("*.yaml"))
    if "mining" in yaml.safe_load(path.read_text(encoding="utf-8"))
]
SAMPLE = Path(__file__).parents[3] / "tune_configs" / "sample.yaml"
LEAST: dict[str, Any] = {"name": "a", "mining": {"experiences": ["snow"]}}


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(LEAST | changes, where="here.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


def mining(**changes: Any) -> dict[str, Any]:
    return {"experiences": ["snow"], **changes}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def least(tmp_path: Path) -> Path:
    return write(tmp_path, "name: a\nmining: {experiences: [snow]}\n")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    config = load_config(path, [])
    assert config.mining.experiences
    assert config.name == yaml.safe_load(path.read_text(encoding="utf-8"))["name"]


def test_the_sample_configuration_is_shipped() -> None:
    assert "sample" in [path.stem for path in SHIPPED]


def test_every_setting_is_described_in_a_sentence() -> None:
    def undescribed(section: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += [] if kind.__doc__ else [prefix + name]
                found += undescribed(kind, f"{prefix}{name}.")
            elif not (field.description or "").endswith("."):
                found.append(prefix + name)
        return found

    assert undescribed(Config, "") == []


def test_known_keys_are_all_dotted_settings() -> None:
    assert {"name", "seed", "mining.collect", "train.outer_rate"} <= set(known_keys())
    assert not {"mining", "train"} & set(known_keys())


def test_an_unknown_setting_is_refused_with_a_near_name() -> None:
    message = refusal(sead=1)
    assert "no setting 'sead'; did you mean 'seed'" in message
    assert "here.yaml" in message


def test_an_unknown_nested_setting_is_refused_with_a_near_name_and_its_section() -> None:
    message = refusal(train={"episods": 3})
    assert "no setting 'train.episods'; did you mean 'train.episodes'" in message
    assert "There are: episodes, round_episodes" in message


def test_a_setting_in_the_wrong_section_is_refused_with_the_right_one() -> None:
    assert "no setting 'train.shots'; did you mean 'task.shots'" in refusal(train={"shots": 3})


@pytest.mark.parametrize("section", ["mining", "targets", "others", "names"])
def test_a_misspelt_corruption_is_refused_with_a_near_name(section: str) -> None:
    wrong = ["gausian_noise"]
    changes: dict[str, dict[str, Any]] = {
        "mining": {"mining": {"experiences": wrong}},
        "targets": {"targets": wrong},
        "others": {"evaluate": {"others": wrong}},
        "names": {"experiences": {"names": wrong}},
    }
    message = refusal(**changes[section])
    assert "no corruption 'gausian_noise'; did you mean 'gaussian_noise'" in message
    assert "here.yaml" in message


def test_short_and_published_names_of_a_corruption_are_the_same() -> None:
    config = parse_config(LEAST | {"targets": ["GN"], "mining": {"experiences": ["sw", "FOG"]}})
    assert config.targets == ("gaussian_noise",)
    assert config.mining.experiences == ("snow", "fog")


def test_a_corruption_named_twice_is_refused_also_by_its_short_name() -> None:
    assert "named twice" in refusal(mining={"experiences": ["snow", "SW"]})
    assert "named twice" in refusal(targets=["fog", "fog"])


@pytest.mark.parametrize("severity", [7, 0, -1])
def test_a_severity_outside_1_to_5_is_refused(severity: int) -> None:
    message = refusal(mining=mining(severities=[1, severity]))
    assert f"mining.severities.1={severity}" in message
    assert ("5" if severity > 5 else "1") in message.partition(":")[2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": "0"}, "seed='0'"),
        ({"seed": True}, "seed=true"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"name": 3}, "name=3"),
        ({"targets": "fog"}, "targets='fog'"),
        ({"train": {"episodes": "many"}}, "train.episodes='many'"),
        ({"train": {"episodes": True}}, "train.episodes=true"),
        ({"inner": {"rate": "0.1"}}, "inner.rate='0.1'"),
        ({"inner": {"rate": True}}, "inner.rate=true"),
        ({"train": [1]}, "train"),
        ({"train": None}, "train"),
        ({"seed": None}, "seed=null"),
        ({"seed": [True, "a", 1]}, "seed=[true, 'a', 1]"),
        ({"name": date(2026, 1, 1)}, "name=2026-01-01"),
        ({"inner": {"rate": float("nan")}}, "inner.rate=.nan"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_name_and_value(
    changes: dict[str, Any], named: str
) -> None:
    message = refusal(**changes)
    assert message.startswith(named)
    assert "here.yaml" in message
    assert "it must be " in message
    assert not any(word in message for word in ("tuple", "dictionary", "instance", "input"))


def test_a_list_that_is_too_short_is_refused_with_its_first_missing_entry() -> None:
    assert refusal(model={"mean": [1.0, 2.0]}).startswith("model.mean: entry 3 is missing")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"task": {"shots": 2**63}}, "task.shots=9223372036854775808"),
        ({"repair": {"seeds": [2**31]}}, "repair.seeds.0=2147483648"),
        ({"workers": -1}, "workers=-1"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": "a" * 201}, "name='aaa"),
        ({"name": ""}, "name=''"),
        ({"name": "."}, "name='.'"),
        ({"name": ".."}, "name='..'"),
        ({"mining": {"experiences": []}}, "mining.experiences"),
        ({"inner": {"rate": 0.0}}, "inner.rate=0.0"),
        ({"inner": {"rate": 11.0}}, "inner.rate=11.0"),
        ({"inner": {"rate": float("nan")}}, "inner.rate=.nan"),
        ({"train": {"outer_rate": float("inf")}}, "train.outer_rate=.inf"),
        ({"train": {"clip_norm": 0.0}}, "train.clip_norm=0.0"),
        ({"train": {"order": "third"}}, "train.order='third'"),
        ({"repair": {"rates": []}}, "repair.rates"),
        ({"repair": {"validation_fraction": 1.0}}, "repair.validation_fraction=1.0"),
        ({"experiences": {"top_k": 0}}, "experiences.top_k=0"),
        ({"experiences": {"alpha": -1.0}}, "experiences.alpha=-1.0"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(changes: dict[str, Any], named: str) -> None:
    assert refusal(**changes).startswith(named)


def test_every_whole_number_has_a_largest_value() -> None:
    def unbounded(field: Any, name: str) -> list[str]:
        if isinstance(field, list):
            return [found for entry in field for found in unbounded(entry, name)]
        if not isinstance(field, dict):
            return []
        own = field.get("type") == "integer" and not {"maximum", "exclusiveMaximum", "const"} & field.keys()
        below = [found for key, value in field.items() for found in unbounded(value, f"{name}.{key}")]
        return [*([name] if own else []), *below]

    assert unbounded(Config.model_json_schema(), "") == []


def test_a_missing_setting_is_named_with_the_way_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"the setting 'mining' is missing.*--set mining="):
        parse_config({"name": "a"})
    with pytest.raises(ConfigError, match=r"'mining\.experiences' is missing"):
        parse_config({"name": "a", "mining": {}})


def test_repeated_seeds_severities_and_methods_are_refused() -> None:
    assert "mining.severities" in refusal(mining=mining(severities=[3, 3]))
    assert "repair.seeds" in refusal(repair={"seeds": [0, 0]})
    assert "repair.methods" in refusal(repair={"methods": ["none", "none"]})


def test_the_choices_top_k_and_list_need_their_own_setting() -> None:
    assert "choice: top_k needs top_k" in refusal(experiences={"choice": "top_k"})
    assert "choice: list needs names" in refusal(experiences={"choice": "list"})
    assert parse_config(LEAST | {"experiences": {"choice": "top_k", "top_k": 2}}).experiences.top_k == 2
    assert parse_config(LEAST | {"experiences": {"choice": "list", "names": ["SW"]}}).experiences.names == (
        "snow",
    )


def test_an_unknown_data_set_is_refused_with_a_near_name() -> None:
    assert "no data set 'cifar11'; did you mean 'cifar10'" in refusal(data={"name": "cifar11"})


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", "+1e-3"])
def test_a_number_may_be_written_in_any_notation(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"name: a\nmining: {{experiences: [snow]}}\ntrain: {{outer_rate: {text}}}\n")
    assert load_config(path, []).train.outer_rate == 0.001
    assert load_config(path, [f"inner.rate={text}"]).inner.rate == 0.001


def test_overrides_have_the_type_that_they_would_have_in_the_file(least: Path) -> None:
    config = load_config(least, ["train.episodes=7", "inner.rate=0.5", "name=b", "mining.severities=[1, 2]",
                                 "evaluate.others=[]", "train.clip_norm=null"])  # fmt: skip
    assert (config.train.episodes, config.inner.rate, config.name) == (7, 0.5, "b")
    assert (config.mining.severities, config.evaluate.others, config.train.clip_norm) == ((1, 2), (), None)


def test_the_last_override_of_a_setting_wins_and_a_direct_argument_wins_over_all(least: Path) -> None:
    config = load_config(least, ["seed=1", "seed=2", "storage_path=x"], storage_path="y")
    assert (config.seed, config.storage_path) == (2, "y")
    assert load_config(least, ["storage_path=x"], storage_path=None).storage_path == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.episodes", "not key=value"),
        ("=3", "not key=value"),
        ("trian.episodes=3", "no setting 'trian"),
        ("train.episodes.x=3", "train.episodes"),
        ("name.x=3", "name is a value"),
        ("mining.severities=[1", "not a YAML value"),
        ("train.episodes=three", "train.episodes='three'"),
    ],
)
def test_a_wrong_override_is_refused(least: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(least, ["train={episodes: 3}", override])


def test_an_override_of_an_unknown_section_is_refused_with_a_near_name(least: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'train"):
        load_config(least, ["trian.episodes=3"])


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n", "name: [\n", "1: 2\n"])
def test_a_file_without_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(write(tmp_path, text), [])


def test_a_yaml_tag_runs_no_code(tmp_path: Path) -> None:
    path = write(tmp_path, f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path, [])
    assert not (tmp_path / "made").exists()


def test_a_setting_given_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nmining: {experiences: [snow]}\nseed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="'seed' occurs twice"):
        load_config(path, [])


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*absent\.yaml cannot be read"):
        load_config(tmp_path / "absent.yaml", [])


def test_settings_survive_a_round_trip_through_json() -> None:
    config = parse_config(LEAST | {"mining": mining(severities=[2, 4]), "repair": {"rates": [0.1, 1]}})
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("resamples", [1, 39])
def test_resamples_too_few_for_an_interval_are_refused(resamples: int) -> None:
    message = refusal(features={"bootstrap": resamples})
    assert f"features.bootstrap: {resamples} resamples are too few for a 95% interval" in message
    assert "at least 40, or 0" in message


@pytest.mark.parametrize("resamples", [0, 40])
def test_no_resamples_and_the_minimum_for_an_interval_are_accepted(resamples: int) -> None:
    config = parse_config(LEAST | {"features": {"bootstrap": resamples}})
    assert config.features.bootstrap == resamples


def test_extrapolation_from_too_few_collected_failures_is_refused() -> None:
    message = refusal(features={"extrapolate": True}, mining=mining(collect=19))
    assert "features.extrapolate: true needs mining.collect of at least 20" in message
    assert "it is 19" in message
    for extrapolate, collect in ((True, 20), (False, 19)):
        parse_config(LEAST | {"features": {"extrapolate": extrapolate}, "mining": mining(collect=collect)})


@pytest.mark.parametrize("text", ["timm:", "timm: resnet18"])
def test_an_extractor_that_yaml_reads_as_a_mapping_is_explained(least: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^features\.extractor: give one word, such as .*timm:resnet18"):
        load_config(least, [f"features.extractor={text}"])


@pytest.mark.parametrize(("given", "shown"), [("[1]", "[1]"), ("{a: 1}", "{a: 1}"), ("x", "'x'"), ("0", "0")])
def test_a_refused_memory_mode_is_shown_as_yaml(given: str, shown: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"train.memory: {shown} is not a memory mode")):
        load_config(SAMPLE, [f"train.memory={given}"])


def test_a_path_that_is_not_utf8_is_refused_with_an_error_of_ours() -> None:
    with pytest.raises(ConfigError, match="it must be text in UTF-8"):
        load_config(SAMPLE, [], storage_path="runs\udcff")
