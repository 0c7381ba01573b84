"""The command line, `metarepair VERB --config FILE`. Heavy packages are imported only by the verbs that need them.

Exit codes: 0 done; 2 the user's input is wrong (one paragraph on stderr); 3 `fix` finished and the deployed weights are
kept; 141 the reader of the output closed the pipe, as `head` does; 1 anything else.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from metarepair import __version__
from metarepair.console.completion import complete
from metarepair.console.kit_options import add_kit_options
from metarepair.console.option_names import in_options
from metarepair.console.options import (
    add_comparison_options,
    add_completion_options,
    add_config_options,
    add_corruption_options,
    add_export_options,
    add_init_options,
    add_inspection_options,
    add_no_images_option,
    add_report_options,
    add_settings_options,
    add_verbosity_options,
)
from metarepair.console.photograph_options import (
    add_fix_options,
    add_photograph_options,
    shared_settings,
)
from metarepair.console.streams import OutputLost, end_without, flush_streams, watched_streams
from tasks.errors import UserError

if TYPE_CHECKING:
    from metarepair.config.run import Config

VERBS = {
    "diagnose": "tell what a model gets wrong on labelled photographs, and which of their labels are suspicious",
    "fix": "repair a model from labelled photographs that it fails on, within a time budget",
    "run": "run all stages: mine, score, train, repair, report",
    "pretrain": "train a DNN to deploy on the clean training split",
    "mine": "corrupt images and collect those that the deployed DNN gets wrong",
    "score": "compute features and distances of environments, and the confidence of experiences",
    "train": "meta-train on the experiences of each target",
    "repair": "repair the deployed DNN for each target, and evaluate it",
    "kit": "make a repair kit of a DNN: all that a repair needs and that needs no failures",
    "compare": "compare repair methods: methods × targets × seeds, in one table",
    "report": "write the table, figures and HTML page of a repaired run",
    "tune": "search for settings and sets of experiences, judged by examples held out of D_collect",
    "hypothesis": "measure whether nearer experiences repair better, on all pairs of corruptions",
    "export": "write a repaired DNN as torch.export or ONNX, as its original weights file, or for Hugging Face's Hub",
    "inspect": "show the contents of a run or an experience store, and verify its checksums",
    "status": "show the progress of a run and who works on it, from its storage alone",
    "init": "write a first, commented YAML file for your own photographs",
    "config": "explain a setting, or print the JSON Schema of all settings for an editor",
    "completion": "print a script that completes this command in bash, zsh or fish",
    "corruptions": "list the corruptions, or show all of them on one image",
    "doctor": "report what this machine and environment can do",
}
PATIENCE_S = 10.0
LONGEST_WORD = 4096  # characters, as many as a path may have
KEPT_WEIGHTS = 3  # exit code of `fix`: finished, and the deployed weights are kept
KEPT = "Finished work is kept: run the same command again to resume"
OF_ONE_VERB = {  # verbs that share no options with others
    "init": add_init_options,
    "config": add_config_options,
    "completion": add_completion_options,
    "corruptions": add_corruption_options,
    "inspect": add_inspection_options,
}
OUTSIDE_THE_STAGES = ("compare", "hypothesis", "pretrain", "tune")  # not stages of `metarepair run`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    If the reader of the output closes the pipe, the command ends silently and keeps its work, as with Ctrl-C.
    """
    with watched_streams():
        try:
            try:
                return _main(arguments)
            finally:
                flush_streams()
        except OutputLost as lost:
            return end_without(lost)


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    complete(parser)
    given = parser.parse_args(arguments)
    _stop_on_signals()
    try:
        _check_own_packages()
        from metarepair.console.lines import printed

        with printed(getattr(given, "verbosity", "usual"), lambda text: in_options(text, given)):
            return _do(given)
    except UserError as error:
        return _fail(given, error, 2)
    except KeyboardInterrupt:
        print(f"\nStopped. {KEPT}.", file=sys.stderr)
        return 1
    except OSError as error:
        said = f"The system refused a file or a connection: {error}."
        remedy = "Make room, grant the permission, or give another path."
        return _fail(given, UserError(f"{said} {remedy} {KEPT}."), 2)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not _is_out_of_memory(error):
            raise
        said = f"There is not enough memory ({(str(error) or type(error).__name__).splitlines()[0]})."
        remedy = (
            "Lower the settings named batch_size, task.shots or task.query_size, data.image_size or workers."
        )
        return _fail(given, UserError(f"{said} {remedy} {KEPT}."), 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, NumPy's or PyTorch's, whose error on the CPU has no class of its own.

    An ImportError says so if the loader finds no room for the code of a library.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in ("can't allocate memory", "failed to map segment"))


def _do(given: argparse.Namespace) -> int:
    if given.verb == "doctor":
        return _examine(given)
    if given.verb == "corruptions":
        return _show_corruptions(given)
    if given.verb in ("init", "config", "completion"):
        return _help_to_write(given)
    if given.verb == "export":
        return _export(given)
    if given.verb == "kit":
        return _make_kit(given)
    if given.verb == "inspect":
        from metarepair.inspection.command import show_inspection

        show_inspection(given.path, sheet=given.sheet, as_json=given.json)
        return 0
    if given.verb == "status":
        from metarepair.inspection.command import show_status

        show_status(given.path, as_json=given.json)
        return 0
    if given.verb == "diagnose":
        return _diagnose(given)
    if given.verb == "fix":
        return _fix(given)
    return _run(given)


def _stop_on_signals() -> None:
    """Handle SIGTERM (sent by `ray job stop`, for example) and a closed terminal like Ctrl-C: end in order.

    A signal that the environment ignores stays ignored, as SIGHUP under `nohup`. While the command ends, further
    signals must not break off the ending; they count again after PATIENCE_S seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    last = -math.inf

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE_S:
            last = time.monotonic()
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _fail(given: argparse.Namespace, error: UserError, code: int) -> int:
    if given.debug:
        traceback.print_exception(error)
    print(f"metarepair: {_in_one_line(in_options(str(error), given))}", file=sys.stderr)
    return code


def _in_one_line(message: str) -> str:
    """Join the lines of a message, and write characters that a terminal would obey, such as ESC, as \\x1b.

    A word that is longer than any path is cut in the middle.
    """
    line = " ".join(w if len(w) <= LONGEST_WORD else f"{w[:500]}…{w[-500:]}" for w in message.split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line
    )


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where the options are listed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"metarepair: {message}. `{self.prog} --help` lists what is allowed.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="metarepair",
        description="Learns from past repairs how to repair a deployed image classifier.",
        epilog="To repair your own model: metarepair fix --help. For a study: metarepair run --config FILE.",
    )
    parser.add_argument("--version", action="version", version=f"metarepair {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, help_text in VERBS.items():
        sub = verbs.add_parser(verb, help=help_text, description=help_text)
        sub.add_argument("--debug", action="store_true", help="print the traceback of an error")
        if verb in OF_ONE_VERB:
            OF_ONE_VERB[verb](sub)
            continue
        if verb == "status":
            sub.add_argument("path", metavar="RUN", help="a run (STORAGE/NAME), local, on s3:// or on gs://")
            sub.add_argument("--json", action="store_true", help="print one JSON object in place of the text")
            continue
        if verb == "export":
            add_export_options(sub)
            add_verbosity_options(sub)
            continue
        if verb == "diagnose":
            add_photograph_options(sub, out="diagnosis")
            add_no_images_option(sub)
            add_verbosity_options(sub)
            continue
        if verb == "kit":
            add_kit_options(sub)
            add_verbosity_options(sub)
            continue
        if verb == "fix":
            add_photograph_options(sub)
            add_fix_options(sub)
            add_verbosity_options(sub)
            continue
        sub.add_argument(
            "--storage", metavar="PATH", help="folder that holds the runs (overrides storage_path)"
        )
        add_settings_options(sub, required=verb != "doctor")
        if verb == "doctor":
            continue
        add_verbosity_options(sub)
        restarted = (
            "this verb's own results" if verb in OUTSIDE_THE_STAGES else "this stage and those after it"
        )
        sub.add_argument("--restart", action="store_true", help=f"start over: {restarted}")
        if verb == "compare":
            add_comparison_options(sub)
        if verb in ("run", "report"):
            add_no_images_option(sub)
        if verb == "report":
            add_report_options(sub)
        sub.add_argument(
            "--address",
            help="address of a Ray cluster (default: RAY_ADDRESS, or else a local Ray on this machine)",
        )
    return parser


def _export(given: argparse.Namespace) -> int:
    from metarepair.console.paths import check_export

    check_export(given.path, given.config, out=given.out)
    from metarepair.console.push import push_wish

    push = push_wish(given.push, public=given.public, confirmed=given.yes, folder_format=given.format == "hf")
    from metarepair.console.export import export

    export(given.path, kind=given.format, out=given.out, config_file=given.config)
    if push is not None:
        push.upload(given.out)
    return 0


def _examine(given: argparse.Namespace) -> int:
    from metarepair.console.doctor import examine

    print(examine(given.storage or "runs"))
    if given.model is None and given.config is None:
        if given.weights or given.set:
            raise UserError(
                "--weights and --set need a DNN to examine: add --model NAME or --config FILE to doctor."
            )
        return 0
    from metarepair.config.load import load_config
    from metarepair.console.doctor import examine_model
    from metarepair.console.paths import check_paths

    needed: dict[str, Any] = {} if given.config else {"name": "doctor", "mining": {"experiences": ["fog"]}}
    model = _named_model(given)
    config = load_config(given.config, given.set, model=model, **needed)
    check_paths(config, given.verb)
    print(examine_model(config, fresh=model["name"] is not None and model["weights"] is None))
    return 0


def _named_model(given: argparse.Namespace) -> dict[str, str | None]:
    """The settings of --model and --weights; a model of a hub brings its own weights."""
    from metarepair.weights.hub import is_hub

    own = given.model if is_hub(given.model) else None
    return {"name": given.model, "weights": given.weights or own}


def _show_corruptions(given: argparse.Namespace) -> int:
    from metarepair.reports.contact_sheet import describe_corruptions, write_contact_sheet

    if bool(given.image) != bool(given.out) or not (given.image or given.list):
        raise UserError(
            "corruptions needs --list, or --image FILE and --out FILE together: "
            "metarepair corruptions --image photo.jpg --out sheet.png"
        )
    if given.list:
        print(describe_corruptions("cifar" if given.table is None else given.table))
    if given.image:
        print(write_contact_sheet(given.image, given.out, table=given.table, seed=given.seed))
    return 0


def _help_to_write(given: argparse.Namespace) -> int:
    if given.verb == "completion":
        from metarepair.console.completion import completion_script

        print(completion_script(given.shell))
        return 0
    if given.verb == "config":
        from metarepair.console.explain import explain_key, schema_text

        print(schema_text() if given.schema else explain_key(given.explain))
        return 0
    from metarepair.console.first_config import write_first_config

    write_first_config(
        given.out, images=given.images, clean=given.clean, model=given.model, weights=given.weights
    )
    print(f"Written to {given.out}")
    return 0


def _check_own_packages() -> None:
    """Raise UserError if `import distributed` finds another project's package, such as Dask's."""
    from metarepair.own_packages import import_own

    try:
        import_own("distributed")
        import distributed
    except ImportError as error:
        raise UserError(str(error)) from error
    if not getattr(distributed, "METAREPAIR", False):
        raise UserError(
            f"`import distributed` finds another project's package ({distributed.__file__}); Dask has one of that "
            "name. Install MetaRepair into its own environment (`make install`), or uninstall the other package."
        )


def _run(given: argparse.Namespace) -> int:
    from metarepair.config.load import load_config
    from metarepair.console.paths import check_paths
    from metarepair.runs.heartbeat import heartbeat
    from metarepair.runs.layout import without_empty_run

    config = load_config(
        given.config,
        given.set,
        model=_named_model(given),
        storage_path=given.storage,
        compare={"budget": getattr(given, "budget", None)},
        preparation_budget=getattr(given, "preparation_budget", None),
    )
    check_paths(config, given.verb)
    verbs = {
        "compare": _compare,
        "pretrain": _pretrain,
        "hypothesis": _study_hypothesis,
        "tune": _search,
        "report": _report,
    }
    with without_empty_run(config), heartbeat(given.verb):
        return verbs.get(given.verb, _run_stages)(given, config)


def _diagnose(given: argparse.Namespace) -> int:
    from metarepair.config.load import parse_config
    from metarepair.config.user_defaults import user_defaults
    from metarepair.console.paths import check_paths
    from metarepair.runs.layout import without_empty_run

    if given.address:
        raise UserError("diagnose runs in this process: leave out --address.")
    if given.clean is None and given.kit is None:
        raise UserError(
            "diagnose compares the photographs with clean images, on which the model works as it should: give --clean, "
            "or a --kit of the model."
        )
    config = parse_config(user_defaults(shared_settings(given)), where="the command line")
    check_paths(config, given.verb)
    with without_empty_run(config):
        return _diagnose_with(given, config)


def _diagnose_with(given: argparse.Namespace, config: Config) -> int:
    from metarepair.runs.layout import open_run
    from metarepair.stages.diagnose import Request, diagnose
    from tasks.storage.run_lock import locked

    request = Request(
        config=config,
        budget_s=given.budget,
        only_failures=given.failures is not None,
        show_images=given.show_images,
    )
    run = open_run(config)
    with locked(run.root, given.verb):
        diagnose(run, request)
    return 0


def _fix(given: argparse.Namespace) -> int:
    from metarepair.config.load import parse_config
    from metarepair.config.user_defaults import user_defaults
    from metarepair.console.paths import check_paths
    from metarepair.runs.layout import without_empty_run

    without_clean = given.clean is None and given.kit is None and given.images is not None
    if without_clean:
        given.clean = given.images  # those that the model gets right will stand in
    settings = shared_settings(given) | {"refine": given.refine}
    config = parse_config(user_defaults(settings), where="the command line")
    check_paths(config, given.verb)
    with without_empty_run(config):
        return _fix_within(given, settings, without_clean=without_clean)


def _fix_within(given: argparse.Namespace, settings: dict[str, Any], *, without_clean: bool) -> int:
    from distributed.on_ray.cluster import connected
    from distributed.stages.executor import executor_for
    from metarepair.runs.layout import open_run
    from metarepair.stages.fix import Fix, Request
    from tasks.storage.run_lock import locked

    request = Request(
        settings=settings,
        budget_s=given.budget,
        only_failures=given.failures is not None,
        without_clean=without_clean,
        drop_suspicious=given.drop_suspicious,
    )
    fix = Fix(request, executor_for, show_images=given.show_images)
    with locked(open_run(request.config).root, given.verb):
        if given.restart:
            fix.restart()
        config = fix.plan()
        with connected(config, given.address):
            outcome = fix.repair(config)
    return KEPT_WEIGHTS if outcome.kept and not given.keep_ok else 0


def _pretrain(given: argparse.Namespace, config: Config) -> int:
    from distributed.on_ray.cluster import connected
    from distributed.stages.pretrain import pretrain_on_ray
    from metarepair.runs.layout import open_run
    from metarepair.stages.pretrain import pretrain_stage
    from tasks.storage.run_lock import locked

    with locked(open_run(config).root, given.verb), connected(config, given.address):
        on_ray = pretrain_on_ray if config.workers else None
        pretrain_stage(config, restart=given.restart, train_elsewhere=on_ray)
    return 0


def _make_kit(given: argparse.Namespace) -> int:
    from metarepair.console.kit_options import load_kit_config
    from metarepair.console.paths import check_paths
    from metarepair.runs.layout import without_empty_run

    config = load_kit_config(given)
    check_paths(config, given.verb)
    with without_empty_run(config):
        from distributed.on_ray.cluster import connected
        from distributed.stages.executor import executor_for
        from metarepair.stages.kit import KitWork
        from metarepair.stages.pipeline import Pipeline
        from tasks.storage.run_lock import locked

        work = KitWork(Pipeline(config, executor_for), images=given.images, failures=given.failures)
        with locked(work.run.root, given.verb), connected(config, given.address):
            if given.restart:
                work.restart()
            work.make()
    print(f"Written to {work.run.root}")
    return 0


def _run_stages(given: argparse.Namespace, config: Config) -> int:
    from distributed.on_ray.cluster import connected
    from distributed.stages.executor import executor_for
    from metarepair.stages.pipeline import Pipeline
    from tasks.storage.paths import place
    from tasks.storage.run_lock import locked

    if given.verb == "report" and given.out is not None:
        if given.restart:
            raise UserError("--out writes a new report and leaves the run as it is; leave out --restart.")
        Pipeline(config, executor_for, report_to=place(given.out), show_images=given.show_images).report()
        return 0
    pipeline = Pipeline(config, executor_for, show_images=getattr(given, "show_images", True))
    do: Callable[[], object] = pipeline.whole if given.verb == "run" else getattr(pipeline, given.verb)
    cluster = nullcontext() if given.verb == "report" else connected(config, given.address)
    with locked(pipeline.run.root, given.verb), pipeline.tracking, cluster:
        if given.restart:
            pipeline.restart("mine" if given.verb == "run" else given.verb)
        do()
    print(f"Written to {pipeline.run.root}")
    return 0


def _report(given: argparse.Namespace, config: Config) -> int:
    from metarepair.console.browser import open_page, require_local
    from metarepair.runs.layout import run_of
    from tasks.storage.paths import place

    if not given.open:
        return _run_stages(given, config)
    folder = require_local(run_of(config).report if given.out is None else place(given.out))
    code = _run_stages(given, config)
    open_page(folder / "index.html")
    return code


def _study_hypothesis(given: argparse.Namespace, config: Config) -> int:
    from distributed.on_ray.cluster import connected
    from distributed.stages.executor import executor_for
    from metarepair.stages.hypothesis import HypothesisStudy
    from tasks.storage.run_lock import locked

    study = HypothesisStudy(config, executor_for)
    with locked(study.run.root, given.verb), connected(config, given.address):
        study.study(restart=given.restart)
    print(f"Written to {study.run.hypothesis}")
    return 0


def _compare(given: argparse.Namespace, config: Config) -> int:
    from metarepair.compare.seeds import config_of_seed, varies_everything
    from metarepair.console.paths import check_pair
    from tasks.errors import ConfigError

    if given.pair:
        if given.restart or given.address:
            raise ConfigError(
                "--pair only draws the results of a finished comparison, in this process: leave out --restart and "
                "--address."
            )
        if varies_everything(config):
            config = config_of_seed(config, config.compare.seeds[0])
        check_pair(config, given.pair)

    from distributed.on_ray.cluster import connected
    from distributed.stages.executor import executor_for
    from metarepair.stages.compare import Comparison
    from metarepair.stages.compare_seeds import comparison_of
    from tasks.storage.run_lock import locked

    if given.pair:
        Comparison(config, executor_for).pair(*given.pair)
        return 0
    comparison = comparison_of(config, executor_for)
    with locked(comparison.run.root, given.verb), connected(config, given.address):
        comparison.compare(restart=given.restart)
    print(f"Written to {comparison.run.compare}")
    return 0


def _search(given: argparse.Namespace, config: Config) -> int:
    from distributed.on_ray.cluster import connected
    from distributed.search.room import cluster_settings
    from distributed.search.tune import TuneSearch
    from tasks.storage.run_lock import locked

    search = TuneSearch(config)
    with locked(search.run.root, given.verb), connected(cluster_settings(config), given.address):
        search.search(restart=given.restart)
    print(f"Written to {search.run.search}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
