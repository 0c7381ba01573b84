"""Wrong settings on the command line: each is refused in one paragraph, before anything is written."""

from __future__ import annotations

import pytest

from bad_input import Cli

pytestmark = pytest.mark.usefixtures("watched")

LONG = "x" * 300  # longer than a file's name may be


@pytest.mark.parametrize(
    ("override", "says"),
    [
        # no KEY=VALUE
        ("", "is not key=value"),
        ("=", "is not key=value"),
        ("=1", "is not key=value"),
        (".=1", "has an empty name before or after a dot"),
        (".train=1", "has an empty name before or after a dot"),
        ("train.=1", "has an empty name before or after a dot"),
        ("train..episodes=1", "has an empty name before or after a dot"),
        # no such setting
        ("é=1", "no setting 'é'"),
        ("💥=1", "no setting '💥'"),
        ("train.épisodes=1", "did you mean 'train.episodes'"),
        ("ray={a: 1}", "no setting 'ray.a'"),
        ("methods={nope: {}}", "no repair method 'nope'"),
        ("methods={finetune: {x: 1}}", "no setting 'methods.finetune.x'"),
        # no YAML value
        ("train.episodes=[1", "is not a YAML value"),
        ("train.episodes={a", "is not a YAML value"),
        ("train={episodes: 1, episodes: 2}", "the key 'episodes' occurs twice"),
        ("train.episodes=*a", "found undefined alias"),
        ("train.episodes=!!python/object:os.system x", "could not determine a constructor"),
        ("train.episodes=" + "9" * 5000, "a number cannot be read"),
        ("train.episodes=0x" + "f" * 5000, "a number cannot be read"),
        ("train={episodes: 1" + ":59" * 3000 + "}", "a number cannot be read"),
        ("mining=" + "[" * 1500, "it is nested too deeply"),
        ('storage_path="a\\0b"', "a text has a null character"),
        # a number of another kind
        ("train.episodes=true", "it must be a whole number"),
        ("train.episodes=1.5", "it must be a whole number"),
        ("train.episodes=.nan", "it must be a whole number"),
        ("train.episodes=.inf", "it must be a whole number"),
        ("train.episodes=1e400", "train.episodes=.inf: it must be a whole number"),
        ("train.episodes=", "train.episodes=null"),
        ("train.episodes=[1]", "it must be a whole number"),
        ("train.episodes={a: 1}", "it must be a whole number"),
        ("train.episodes=💥", "it must be a whole number"),
        ("mining.collect=1e3", "it must be a whole number"),
        ("inner.rate=nan", "inner.rate='nan': it must be a number"),
        ("inner.rate=.nan", "it must be a finite number"),
        ("inner.rate=.inf", "it must be a finite number"),
        ("inner.rate=1e400", "it must be a finite number"),
        ("inner.rate=true", "it must be a number"),
        ("inner.rate=[0.1]", "it must be a number"),
        ("model.mean=[.nan, 0.5, 0.5]", "model.mean.0=.nan: it must be a finite number"),
        # a number out of its range
        ("train.episodes=-1", "it must be at least 1"),
        ("train.episodes=9223372036854775808", "train.episodes=9223372036854775808"),
        ("seed=-1", "it must be at least 0"),
        ("workers=-1", "it must be at least 0"),
        ("mining.collect=0", "it must be at least 1"),
        ("mining.shard_images=0", "it must be at least 1"),
        ("task.shots=0", "it must be at least 1"),
        ("task.query_size=0", "it must be at least 1"),
        ("inner.steps=-1", "it must be at least 0"),
        ("inner.rate=0", "it must be above 0"),
        ("inner.rate=-0.1", "it must be above 0"),
        ("repair.rates=[0]", "it must be above 0"),
        ("repair.validation_fraction=0", "it must be above 0"),
        ("repair.validation_fraction=1", "it must be below 1"),
        ("mining.severities=[0]", "it must be at least 1"),
        ("mining.severities=[3.5]", "it must be a whole number"),
        ("data.max_train_images=0", "it must be at least 1"),
        ("evaluate.others_images=-1", "it must be at least 1"),
        ("model.std=[0, 0, 0]", "must be above 0"),
        ("model.std=[-1, 1, 1]", "must be above 0"),
        # a list
        ("targets=gaussian_noise", "it must be a list"),
        ("targets={a: b}", "it must be a list"),
        ("targets=[]", "it must have 1 or more entries"),
        ("targets=[3]", "targets.0=3: it must be text"),
        ("targets=[null]", "targets.0=null: it must be text"),
        ("targets=[[gaussian_noise]]", "it must be text"),
        ("targets=[gaussian_noise, GN]", "a corruption or environment is named twice"),
        ("mining.experiences=[]", "it must have 1 or more entries"),
        ("mining.severities=3", "it must be a list"),
        ("mining.severities=[3, 3]", "3 is listed twice"),
        ("mining.severities=[true]", "it must be a whole number"),
        ("repair.methods=metarepair", "it must be a list"),
        ("repair.methods=[]", "it must have 1 or more entries"),
        ("repair.seeds=[1, 1]", "1 is listed twice"),
        ("model.mean=0.5", "it must be a list"),
        ("model.mean=[0.5]", "entry 2 is missing"),
        # a group
        ("train=3", "it must be a group of settings"),
        ("train=", "it must be a group of settings"),
        ("train=[1]", "it must be a group of settings"),
        ("train.episodes.x=1", "episodes is a value, not a group of settings"),
        ("methods=3", "it must be a group of settings"),
        # a choice
        ("device=gpu", "it must be 'auto', 'cpu' or 'cuda'"),
        ("device=cuda:99", "it must be 'auto', 'cpu' or 'cuda'"),
        ("device=", "it must be 'auto', 'cpu' or 'cuda'"),
        ("device=[cpu]", "it must be 'auto', 'cpu' or 'cuda'"),
        ("experiences.rule=nope", "it must be 'softmax', 'hinge', 'cutoff' or 'uniform'"),
        ("experiences={choice: nope}", "it must be 'all', 'top_k', 'category' or 'list'"),
        ("experiences={choice: top_k}", "needs top_k"),
        ("evaluate.others=[nope]", "no corruption 'nope'"),
        ("features.extractor=../../x", "no feature extractor '../../x'"),
        ("features.extractor=timm:nope", "has no model 'nope'"),
        # a name
        ("name=", "it must be text"),
        ("name=3", "it must be text"),
        ("name=a/b", "it may contain letters, digits"),
        ("name=a\\b", "it may contain letters, digits"),
        ("name='tiny '", "it may contain letters, digits"),
        ("name=.hidden", "it may contain letters, digits"),
        ("name=été", "it may contain letters, digits"),
        ('name="a\\nb"', "it may contain letters, digits"),
        ('name="\\e[31m"', r"name='\x1b[31m'"),
        (f"name={LONG}", "at most"),
        # a path
        ("model.weights=3", "it must be text"),
        ("model.weights=/", "is a folder"),
        ("model.weights=s3://", "no such file"),
        (f"model.weights={LONG}", "cannot be looked up (File name too long)"),
        ("model.weights=~no-such-user/a", "cannot be looked up (the home folder of an unknown user)"),
        (f"data.root={LONG}", "data.root='xxx"),
        ("data.root=~no-such-user", "data.root='~no-such-user' cannot be looked up"),
        (f"data.archive={LONG}", "data.archive='xxx"),
        (f"features.weights={LONG}", "features.weights='xxx"),
    ],
)
def test_a_wrong_setting_is_refused(fresh: Cli, override: str, says: str) -> None:
    fresh.assert_refused("run", "--set", override, says=[says])


@pytest.mark.parametrize(
    ("override", "start", "end"),
    [
        ("device='" + "x" * 100_000 + "'", "device='xxxx", "it must be 'auto', 'cpu' or 'cuda'"),
        ("targets=[" + "fog, " * 20_000 + "]", "is named twice in fog, fog", "Name each once"),
        ("features.extractor='" + "x" * 100_000 + "'", "'xxxx", "There are: "),
    ],
)
def test_a_long_value_is_not_repeated_in_full(fresh: Cli, override: str, start: str, end: str) -> None:
    message = fresh.assert_refused("run", "--set", override, says=[start, end])
    assert len(message) < 3100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--storage", ""], "storage_path=''"),
        (["--storage", LONG], "cannot be written"),
        (["--storage", "~no-such-user"], "home folder of an unknown user"),
        (["--storage", "/dev/null/runs"], "Not a directory"),
        (["--storage", "file:///tmp/x"], "has the scheme 'file'"),
        (["--storage", "https://host/x"], "has the scheme 'https'"),
        (["--model", ""], "model.name=''"),
        (["--model", ":"], "neither a timm name nor an import path"),
        (["--model", "a:"], "neither a timm name nor an import path"),
        (["--model", ":f"], "neither a timm name nor an import path"),
        (["--model", "a:b:c"], "neither a timm name nor an import path"),
        (["--model", "..a:b"], "neither a timm name nor an import path"),
        (["--model", "timm:"], "no model ''"),
        (["--model", "timm:resnet18:x"], "no model 'resnet18:x'"),
        (["--model", "os:getcwd"], "returned str, not a torch.nn.Module"),
        (["--model", "os:sep"], "is str, not a function or class"),
        (["--model", "os:strerror"], "raised TypeError"),
        (["--model", "builtins:exit"], "raised SystemExit"),
        (["--weights", "absent.pt"], "no such file"),
        (["--weights", "shipped:"], "is not shipped"),
        (["--weights", "https://host/a.pt"], "no such file"),
        (["--frob"], "unrecognized arguments: --frob"),
        (["more"], "unrecognized arguments: more"),
        (["--set"], "expected one argument"),
        (["--quiet", "--verbose"], "not allowed with argument"),
    ],
)
def test_a_wrong_option_of_a_run_is_refused(fresh: Cli, arguments: list[str], says: str) -> None:
    fresh.assert_refused("mine", *arguments, says=[says])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", ""], "budget='' is not a budget"),
        (["--budget", "5"], "budget='5' is not a budget"),
        (["--budget", "5hours"], "is not a budget"),
        (["--budget", "٣s"], "is not a budget"),
        (["--budget", "nans"], "is not a budget"),
        (["--budget=-5s"], "is not a budget"),
        (["--budget", "0s"], "must be above 0"),
        (["--budget", "1e400s"], "must be above 0"),
        (["--budget", "1.5steps"], "whole for steps"),
        (["--pair", "none"], "expected 2 arguments"),
        (["--pair", "none", "none"], "name two different methods"),
        (["--pair", "nope", "none"], "no method of compare.methods 'nope'"),
        (["--pair", "none", "finetune"], "holds no comparison"),
        (["--pair", "none", "finetune", "--restart"], "leave out --restart"),
        (["--set", "compare.methods=[]"], "it must have 1 or more entries"),
        (["--set", "compare.methods=[nope]"], "no repair method 'nope'"),
        (["--set", "compare.seeds=[]"], "it must have 1 or more entries"),
    ],
)
def test_a_wrong_comparison_is_refused(fresh: Cli, arguments: list[str], says: str) -> None:
    fresh.assert_refused("compare", *arguments, says=[says])


@pytest.mark.parametrize(
    ("search", "says"),
    [
        (None, "the setting 'search' is missing"),
        ("3", "it must be a group of settings"),
        ("{}", "there is nothing to search"),
        ("{trials: 0}", "it must be at least 1"),
        ("{space: {nope: [1]}}", "is not a distribution"),
        ("{space: {inner.rate: 3}}", "is not a distribution"),
        ("{space: {inner.rate: {loguniform: [1, 2]}}}", "log_uniform"),
        ("{space: {inner.rate: {uniform: [1]}}}", "give its two ends"),
        ("{space: {inner.rate: {uniform: [.nan, 1]}}}", "both ends must be finite"),
        ("{space: {inner.rate: {choice: []}}}", "the list is empty"),
        ("{space: {seed: {choice: [1, 2]}}}", "this setting cannot be searched"),
    ],
)
def test_a_wrong_search_is_refused(fresh: Cli, search: str | None, says: str) -> None:
    fresh.assert_refused("tune", *([] if search is None else ["--set", f"search={search}"]), says=[says])


@pytest.mark.parametrize(
    "verb", ["run", "pretrain", "mine", "score", "train", "repair", "compare", "report", "tune", "hypothesis"]
)
def test_every_verb_refuses_a_missing_configuration(fresh: Cli, verb: str) -> None:
    fresh.assert_refused(
        verb, "--config", str(fresh.folder / "absent.yaml"), says=["absent.yaml", "does not exist"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "nope"], "no model 'nope'"),
        (["--model", "a:b:c"], "neither a timm name nor an import path"),
        (["--model", "resnet8_cifar", "--weights", "absent"], "no such file"),
        (["--model", "resnet8_cifar", "--set", "x"], "is not key=value"),
        (["--weights", "x"], "need a DNN to examine"),
        (["--set", "seed=1"], "need a DNN to examine"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["--storage", "s3://b/../x"], "names no bucket"),
        (["--storage", LONG], "too long"),
        (["--storage", "~no-such-user"], "home folder of an unknown user"),
        (["--storage", "ftp://host/x"], "has the scheme 'ftp'"),
        (["--storage", "s3://"], "names no bucket"),
    ],
)
def test_doctor_refuses_what_it_cannot_examine(fresh: Cli, arguments: list[str], says: str) -> None:
    fresh.assert_refused("doctor", *arguments, says=[says])


def test_doctor_reports_a_file_in_place_of_a_storage_folder(fresh: Cli) -> None:
    code, out, _ = fresh.answer("doctor", "--storage", str(fresh.folder / "tiny.yaml"))
    assert code == 0
    assert "tiny.yaml: NOT writable" in out
