"""Every sentence of SECURITY.md on what runs code and what is promised has tests; CLAIMS names them.

To add a sentence, add a row with the sentence as it stands in SECURITY.md, on one line, and the tests that show it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECTIONS = ("What runs code", "What is promised")
HERE = "unit/house/test_security.py"
NAMES = "unit/tasks/storage/test_names.py"
LOCAL_RAY = "distributed/test_local_ray.py"

# The sentence, and its tests below tests/.
CLAIMS: dict[str, tuple[str, ...]] = {
    "MetaRepair reads data and weights without running anything from them:": (
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
        f"{HERE}::test_loaders_of_arrays_and_weights_are_told_to_unpickle_nothing",
    ),
    "Paths in a table of images: inside the table's folder, or the folder that you name.": (
        "unit/tasks/datasets/test_labelled_images.py::test_a_csv_file_that_cannot_be_meant_is_refused",
        "unit/tasks/datasets/test_labelled_images.py::test_links_that_leave_the_folder_are_refused_and_others_are_followed",
    ),
    "A repair kit names the import path of its model, and holds no code; the path is imported only if you name it "
    "yourself.": ("e2e/test_kit.py::test_a_kit_imports_no_module_that_the_user_has_not_named",),
    "Weights: `.safetensors`, or files of `torch.save` read with `weights_only=True`.": (
        "unit/models/test_weights_file.py::test_a_safetensors_file_is_known_by_its_bytes_and_needs_no_note",
        "unit/models/test_weights_file.py::test_a_torch_file_is_known_by_its_bytes_whatever_its_suffix",
        f"{HERE}::test_loaders_of_arrays_and_weights_are_told_to_unpickle_nothing",
    ),
    "Models of the Hugging Face Hub: `config.json`, `preprocessor_config.json` and `model.safetensors`, each checked "
    "against the digest by which the cache names it (a cache copied without its links names none).": (
        "unit/weights/test_hub.py::test_a_damaged_blob_is_refused_with_both_digests",
        "unit/weights/test_hub.py::test_a_damaged_config_is_refused",
        "unit/weights/test_hub.py::test_a_cache_that_was_copied_without_links_is_read",
    ),
    "No pickle and no code of a repository is read.": (
        "unit/weights/test_hub.py::test_a_repository_with_only_pickles_is_refused",
        "unit/models/test_hub.py::test_code_in_a_repository_is_never_run",
    ),
    "A pickle that asks for more than tensors and plain containers is refused.": (
        "e2e/test_bad_input.py::test_a_pickle_in_place_of_weights_is_refused_and_runs_nothing",
        "unit/features/test_inception.py::test_a_pickle_of_other_objects_is_refused_with_the_remedy_and_no_warning",
        "unit/features/test_inception.py::test_a_file_that_would_run_code_is_refused",
    ),
    "Experiences, features, tables and results: Arrow, Parquet, JSON and NumPy files without pickled objects.": (
        f"{HERE}::test_a_moments_file_with_pickled_objects_is_refused_and_runs_nothing",
        f"{HERE}::test_loaders_of_arrays_and_weights_are_told_to_unpickle_nothing",
        "unit/tasks/datasets/test_datasets.py::test_npz_with_a_pickled_array_is_refused",
        "unit/tasks/datasets/test_archives.py::test_a_damaged_array_is_refused_by_name",
    ),
    "The published CIFAR batches are pickles; an unpickler that builds arrays and plain containers alone reads "
    "them.": (
        "unit/tasks/datasets/test_datasets.py::test_a_batch_that_would_run_code_is_refused_and_runs_nothing",
        "unit/tasks/datasets/test_datasets.py::test_the_published_python_batches_are_read_in_order_with_channels_last",
    ),
    "Settings: YAML, read as data: numbers, text, lists and maps of a bounded size.": (
        "unit/config/test_config.py::test_a_yaml_tag_runs_no_code",
        "unit/config/test_yaml.py::test_anything_but_plain_settings_is_refused_in_one_paragraph",
        "unit/config/test_yaml.py::test_a_file_of_settings_has_at_most_a_mebibyte",
        "unit/config/test_yaml.py::test_values_on_the_command_line_are_bounded_as_well",
    ),
    "Names of files in manifests, checkpoints, results and plans: relative paths inside their folder.": (
        f"{NAMES}::test_hostile_names_are_refused",
        f"{NAMES}::test_an_accepted_name_never_leaves_its_folder",
        f"{NAMES}::test_a_checkpoint_that_lists_hostile_names_is_damaged",
        f"{NAMES}::test_results_and_plans_with_hostile_names_are_refused",
    ),
    "A run that you received cannot have anything else deleted.": (
        f"{NAMES}::test_a_received_manifest_deletes_nothing_outside_its_stage",
        f"{NAMES}::test_a_link_that_leads_out_of_the_stage_is_not_followed",
        f"{NAMES}::test_a_link_in_place_of_a_file_is_deleted_and_its_target_is_not",
        f"{NAMES}::test_a_pipe_in_place_of_a_checkpoint_file_is_not_opened",
    ),
    "These do run code, and you must trust where they come from:": (
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
    ),
    "`--model module:FACTORY` imports the module that you name, from your folder or environment.": (
        "unit/models/test_factory.py::test_a_factory_of_the_current_folder_is_called_with_num_classes_where_it_takes_it",
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
    ),
    "Repair methods of other packages, which are found by the entry point `metarepair.methods`.": (
        "unit/methods/test_registry.py::test_a_method_of_another_package_is_found_by_its_entry_point",
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
    ),
    "Corruptions of other packages, which are found by the entry point `metarepair.corruptions` when a setting or a "
    "run names one.": (
        "unit/tasks/corruptions/test_plugins.py::test_a_plugin_is_found_by_its_name_in_any_case_and_gives_its_category",
        "unit/tasks/corruptions/test_plugins.py::test_published_names_load_no_plugin",
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
    ),
    "Exported programs (`model.pt2`, `model.onnx`) when you load and run them.": (
        f"{HERE}::test_programs_are_loaded_by_the_export_alone_which_checks_them",
        "unit/repairs/test_export.py::test_a_program_with_other_results_than_the_dnn_is_not_written",
    ),
    "`metarepair tune` on an unfinished search: Ray Tune keeps its state as pickles in `search/tune/` and reads them "
    "to resume.": (f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",),
    "Delete that folder in a run that you received.": (
        "distributed/test_tune.py::test_a_trial_that_died_resumes_from_its_checkpoints_to_the_same_record",
    ),
    "A Ray cluster: whoever can submit jobs to it can run anything on it.": (
        f"{LOCAL_RAY}::test_other_users_cannot_reach_a_ray_of_our_own",  # who has its token runs a command
    ),
    "The files in `cluster/` turn on token authentication and do not expose the dashboard; keep both.": (
        "unit/cluster/test_cluster_files.py::test_kubernetes_cluster_autoscales_requires_a_token_and_is_not_exposed",
        "unit/cluster/test_ray_up_files.py::test_nodes_get_the_files_that_commands_use_and_every_ray_requires_the_token",
    ),
    "A Ray that MetaRepair starts on your machine is closed to its other users: it listens on loopback, has a random "
    "token of its own, and keeps its files in a folder that only you can enter.": (
        f"{LOCAL_RAY}::test_other_users_cannot_reach_a_ray_of_our_own",
        "unit/distributed/test_local_ray.py::test_rays_files_are_for_this_user_alone_and_removed_at_the_end",
        "unit/distributed/test_local_ray.py::test_a_local_ray_has_a_token_of_its_own_unless_the_environment_has_one",
    ),
    "One port of PyTorch's stays open while several workers train ([docs/ray.md](docs/ray.md#a-local-ray)).": (
        f"{LOCAL_RAY}::test_other_users_cannot_reach_a_ray_of_our_own",  # no other port is open
    ),
    "Memory, too, is bounded by what a file holds.": (
        "unit/tasks/datasets/test_bounded.py::test_a_file_that_claims_more_than_it_holds_is_refused_in_little_memory",
        "unit/models/test_weights_file.py::test_a_pickle_that_asks_for_much_memory_is_refused",
    ),
    "Secrets of the environment are written nowhere, and paths with credentials are refused.": (
        "e2e/test_secrets.py::test_a_run_writes_and_prints_no_secret_of_the_environment",
        "e2e/test_secrets.py::test_credentials_in_a_path_are_refused_without_being_repeated",
    ),
    "Files that you did not write yourself cannot run code through MetaRepair, except in the ways above.": (
        f"{HERE}::test_what_could_run_code_is_called_only_where_it_is_meant",
        f"{HERE}::test_loaders_of_arrays_and_weights_are_told_to_unpickle_nothing",
    ),
    "A damaged file is named and refused; it is not taken for a finished result.": (
        "e2e/test_mended.py::test_a_flipped_byte_of_a_target_is_refused",
        "e2e/test_inspect.py::test_the_remedy_for_a_damaged_file_mends_the_run",
        "unit/models/test_weights_file.py::test_a_damaged_file_of_a_run_is_refused_in_the_same_words",
        "unit/runs/test_run_stage.py::test_damage_is_repaired_by_the_stages_that_mend_and_refused_by_others",
    ),
    "A target's D_fail, the failures that judge a repair, is opened for judging by the evaluation alone, which "
    "records each time.": (
        "e2e/test_honesty.py::test_nothing_before_the_evaluation_reads_d_fail",
        "e2e/test_honesty.py::test_each_opening_of_d_fail_is_logged",
        "e2e/test_honesty.py::test_a_methods_inputs_give_no_access_to_d_fail",
    ),
    "The report opens it again, unrecorded, to draw examples.": (
        "e2e/test_honesty.py::test_the_report_opens_d_fail_again_and_does_not_log_it",
    ),
}

# What could run code from a file or by a name, and the only modules that use it.
COULD_RUN_CODE = {
    "import_module": {
        "distributed/on_ray/own_packages.py",  # these two import our own packages by name
        "metarepair/own_packages.py",
        "metarepair/__init__.py",
        "metarepair/models/factory.py",
    },
    "entry_points": {"metarepair/methods/registry.py", "tasks/corruptions/plugins.py"},
    "export.load": {"metarepair/repairs/export.py"},
    "InferenceSession": {"metarepair/repairs/export.py"},
    "import pickle": {"tasks/datasets/cifar.py"},
    "Tuner.restore": {"distributed/search/tune.py"},  # Ray Tune's own state, which is pickled
}
NOWHERE = ("unsafe_load", "full_load", "load_module", "jit.load", "hub.load")
BUILTINS = ("eval", "exec", "compile", "__import__")
PICKLERS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy")


def sentences() -> list[str]:
    """The sentences of the two sections, each on one line. A bullet's or a paragraph's lines are joined first."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    found = []
    for section in SECTIONS:
        body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert body is not None, section
        for block in re.split(r"\n\n|\n(?=- )", body[1].strip()):
            found += re.split(r"(?<=\.) (?=[A-Z`])", " ".join(block.removeprefix("- ").split()))
    return found


def test_every_sentence_of_the_policy_has_a_row_and_every_row_a_sentence() -> None:
    found = sentences()
    assert [sentence for sentence in found if sentence not in CLAIMS] == []
    assert [sentence for sentence in CLAIMS if sentence not in found] == []


@pytest.mark.parametrize("test", sorted({test for tests in CLAIMS.values() for test in tests}))
def test_every_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_claim_has_a_test() -> None:
    assert [sentence for sentence, tests in CLAIMS.items() if not tests] == []


def iter_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield each call in the three packages: the file, the called name with its dots, and the call."""
    for package in ("tasks", "metarepair", "distributed"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def picklers_imported() -> Iterator[str]:
    """Yield the files of the three packages that import a module which runs code from files."""
    for package in ("tasks", "metarepair", "distributed"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[-1] in PICKLERS for name in names):
                    yield path.relative_to(ROOT).as_posix()


def test_what_could_run_code_is_called_only_where_it_is_meant() -> None:
    calls = [(file, name) for file, name, _ in iter_calls()]
    assert [call for call in calls if call[1] in BUILTINS] == []
    found = {
        what: {file for file, name in calls if name == what or name.endswith(f".{what}")}
        for what in (*COULD_RUN_CODE, *NOWHERE)
    }
    found["import pickle"] = set(picklers_imported())
    assert found == COULD_RUN_CODE | {what: set() for what in NOWHERE}


def test_loaders_of_arrays_and_weights_are_told_to_unpickle_nothing() -> None:
    safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    calls = [(file, name, call) for file, name, call in iter_calls() if name in safe]
    assert {name for _, name, _ in calls} == safe.keys()
    for file, name, call in calls:
        given = {
            word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg == safe[name][0]
        }
        assert given == dict([safe[name]]), f"{file}: {name}"


def test_images_are_opened_in_formats_that_run_no_program() -> None:
    opened = [(file, call) for file, name, call in iter_calls() if name == "Image.open"]
    assert len(opened) == 3
    for file, call in opened:
        assert "formats" in [word.arg for word in call.keywords], (
            f"{file}: Pillow would run Ghostscript for EPS"
        )


def test_programs_are_loaded_by_the_export_alone_which_checks_them() -> None:
    tree = ast.parse((ROOT / "metarepair/repairs/export.py").read_text(encoding="utf-8"))
    loading = {
        function.name
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("torch.export.load", "onnxruntime.InferenceSession")
    }
    assert loading == {"_read_torch", "_read_onnx"}  # of the file that the export has just written


def test_a_moments_file_with_pickled_objects_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    import numpy as np

    from metarepair.features.files import read_moments

    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (ran,)

    np.save(tmp_path / "moments.npy", np.array([Attack()]), allow_pickle=True)
    with pytest.raises(Exception, match=r"moments\.npy"):
        read_moments(tmp_path / "moments.npy")
    assert not ran.exists()
