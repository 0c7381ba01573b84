"""Export a repaired DNN: as a torch.export (.pt2) or ONNX program, or as its original weights file.

A program maps normalised images [batch, C, H, W] to logits, as the DNN does, for any batch size. It says in METADATA
how images are normalised and what the classes are called. It is read back and compared with the DNN on real images
before the file gets its final name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metarepair.engine.vectors import not_finite
from metarepair.models.build import DeployedModel
from metarepair.models.fit import COUNTER, FitResult, fit
from metarepair.models.weights_file import WeightsFile, read_weights
from metarepair.models.wrappers import copied
from tasks.datasets import Dataset
from tasks.errors import ConfigError, UserError, WeightsError
from tasks.records import Pixels
from tasks.storage.paths import Place, writing

# B images, C H W pixels, K classes

Kind = Literal["torch", "onnx"]
FILE_NAMES: Mapping[Kind, str] = {"torch": "model.pt2", "onnx": "model.onnx"}
EXPORTERS: Mapping[Kind, str] = {"torch": "torch.export", "onnx": "torch.onnx"}
EQUALITY_IMAGES = 64  # a program is checked on at most so many images
TOLERANCE = 1e-3  # of the largest logit: runtimes sum in different orders, in float32
METADATA = "metarepair.json"  # an extra file of torch.export, and a property of ONNX
INPUT = "float32 [batch, *input_size]: pixels from 0 to 1 in RGB, less mean, divided by std"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_COMMAND = "pip install 'metarepair[onnx]'"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A checked program, and the largest difference of its logits from the DNN's on `images` images."""

    path: Place
    images: int
    difference: float

    @property
    def words(self) -> str:
        return (
            f"{self.path}: the same classes on {self.images} images of the data set, logits differ by at most "
            f"{self.difference:.2g}"
        )


def require_packages(kind: Kind) -> None:
    """Raise ConfigError with the install command if packages for `kind` are missing."""
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None] if kind == "onnx" else []
    if missing:
        raise ConfigError(
            f"the format onnx needs packages that are not installed ({', '.join(missing)}): {ONNX_COMMAND}. "
            "The format torch needs no further packages."
        )


def equality_images(test: Dataset) -> Pixels:
    """Return the images that a program is checked on: the first 64 of the test split, or all if it has fewer."""
    return test.images(np.arange(min(EQUALITY_IMAGES, len(test.labels_N))))


def export_program(
    deployed: DeployedModel,
    images_BHWC_u8: Pixels,
    kind: Kind,
    folder: Place,
    *,
    class_names: Sequence[str],
    preprocessing: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> ExportResult:
    """Write `deployed` as a program into `folder`, checked on the images (one or more).

    preprocessing: what the program tells in place of that of `deployed`. Raises ConfigError if packages are missing.
    Raises UserError, and writes nothing, if the DNN cannot be exported or the program's classes or logits differ from
    the DNN's.
    """
    require_packages(kind)
    module = plain(deployed.module)
    x_BCHW = deployed.normalise(images_BHWC_u8).float().cpu().contiguous()
    path = folder / (name or FILE_NAMES[kind])
    facts = input_facts(
        deployed.preprocessing if preprocessing is None else preprocessing, class_names, x_BCHW
    )
    write, read = (_write_torch, _read_torch) if kind == "torch" else (_write_onnx, _read_onnx)
    with writing(path) as part, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own code, not of this DNN
        try:
            # Two images (one twice if there is only one): exporters turn a batch of one into a fixed size.
            write(module, x_BCHW[[0, -1]], part, json.dumps(facts))
        except Exception as error:  # the DNN's forward may raise anything here
            message = " ".join(str(error).split())[:200]
            raise UserError(
                f"{deployed.name} cannot be exported as {kind}: {EXPORTERS[kind]} raised {type(error).__name__} "
                f"({message}). Its weights are unchanged: use model.safetensors, the format original, or a DNN that "
                "this exporter accepts."
            ) from error
        found = compared(module, read(part), x_BCHW)
        if not found.same:
            raise UserError(
                f"{path} was not written: the program {found.words}. Use the weights (model.safetensors), or the other "
                "format."
            )
    return ExportResult(path=path, images=len(x_BCHW), difference=found.difference)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How another form of a DNN differs from it on `images` images.

    difference: the largest of the logits. allowed: the largest that is rounding. others: images of another class.
    """

    images: int
    difference: float
    allowed: float
    others: int

    @property
    def same(self) -> bool:
        return not self.others and self.difference <= self.allowed  # which NaN is not

    @property
    def words(self) -> str:
        return (
            f"gives another class for {self.others} of {self.images} images, and logits differ by up to "
            f"{self.difference:.2g}"
        )


@torch.no_grad()
def compared(module: nn.Module, other: Callable[[Tensor], Tensor], x_BCHW: Tensor) -> Comparison:
    """Compare the logits of a DNN and of another form of it on normalised images."""
    ours_BK: Tensor = module(x_BCHW)
    theirs_BK = other(x_BCHW)
    return Comparison(
        images=len(x_BCHW),
        difference=float((ours_BK - theirs_BK).abs().max()),
        allowed=TOLERANCE * max(1.0, float(ours_BK.abs().max())),
        others=int((ours_BK.argmax(1) != theirs_BK.argmax(1)).sum()),
    )


def plain(module: nn.Module) -> nn.Module:
    """Return a copy in float32 on the CPU, in evaluation mode and with contiguous weights, as exporters take it."""
    return copied(module).eval().float().cpu().to(memory_format=torch.contiguous_format)


def input_facts(
    preprocessing: Mapping[str, Any], class_names: Sequence[str], x_BCHW: Tensor
) -> dict[str, Any]:
    """Return what a program's input must be and what its outputs mean; mean and std are None where nobody told them."""
    return {
        "input": INPUT,
        "input_size": list(x_BCHW.shape[1:]),
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "class_names": list(class_names),
    }


def _batches() -> Any:
    return ({0: torch.export.Dim("batch", min=1)},)


def _write_torch(module: nn.Module, x_BCHW: Tensor, part: Path, facts: str) -> None:
    program = torch.export.export(module, (x_BCHW,), dynamic_shapes=_batches())
    with part.open("wb") as stream:
        torch.export.save(program, stream, extra_files={METADATA: facts})


def _read_torch(part: Path) -> Callable[[Tensor], Tensor]:
    with part.open("rb") as stream:
        program: Callable[[Tensor], Tensor] = torch.export.load(stream).module()
    return program


def _write_onnx(module: nn.Module, x_BCHW: Tensor, part: Path, facts: str) -> None:
    program = torch.onnx.export(
        module,
        (x_BCHW,),
        dynamo=True,
        dynamic_shapes=_batches(),
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    assert program is not None  # as with dynamo
    program.model.metadata_props[METADATA] = facts
    program.save(str(part), external_data=False)  # one file, up to ONNX's limit of 2 GiB


def _read_onnx(part: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra

    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    return lambda x_BCHW: torch.from_numpy(session.run(["logits"], {"images": x_BCHW.numpy()})[0])


def export_original(deployed: DeployedModel, original: Path, out: Place, *, entry: str | None) -> str:
    """Write a copy of `original`, a weights file, with the tensors of `deployed` in place of its own.

    Names, their order and prefix, the entry that holds them, types, and everything else in the file stay the same.
    Returns a line for the user that says what was written. Raises WeightsError if a tensor cannot be put back into the
    file.
    """
    file = read_weights(original, entry=entry)
    fitted, state = fit(deployed.module, file, deployed.name), deployed.module.state_dict()
    computed = [key for key in state if key not in fitted.names and not key.endswith(COUNTER)]
    if computed:
        raise WeightsError(
            f"{original} cannot be written back: {computed[0]} ({len(computed)} such tensors) is not one of its "
            f"tensors; timm's map for {deployed.name} computes it from them, and has no inverse. Use "
            "model.safetensors, which timm.create_model loads."
        )
    replaced, rounded = _replaced(file, fitted, state)
    # The DNN's tensors have channels last in memory, which safetensors does not write.
    tensors = {
        k: replaced.get(k, v).clone(memory_format=torch.contiguous_format) for k, v in file.tensors.items()
    }
    with writing(out) as part:
        if file.container == "safetensors":
            save_file(tensors, part, metadata=file.content)
        else:
            with part.open("wb") as stream:  # given a path, torch.save may choose a format by its suffix
                torch.save(tensors if file.entry is None else file.content | {file.entry: tensors}, stream)
    return f"{out}: {original.name} with the repaired tensors ({_around(file, fitted, rounded)})"


def _replaced(
    file: WeightsFile, fitted: FitResult, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[torch.dtype]]:
    """Return the repaired tensors by their names in the file, and the types of those that had to be rounded.

    Raises WeightsError if values are too large for a tensor's type.
    """
    replaced, rounded = {}, set()
    for key, name in fitted.names.items():
        back = _like(file.tensors[name], fitted.tensors[key], state[key])
        replaced[name] = back
        if torch.equal(back.to(state[key]).reshape(state[key].shape), state[key]):
            continue
        # `back` alone does not show an overflow: some 8-bit types clamp to their largest value.
        if not back.is_floating_point() or not_finite({name: back}) or _too_large(state[key], back.dtype):
            raise WeightsError(
                f"{file.path} cannot be written back: its {name} is {back.dtype}, and the repaired values are too "
                "large for that type. Use model.safetensors, which has the DNN's own types."
            )
        rounded.add(back.dtype)
    return replaced, sorted(rounded, key=str)


def _too_large(values: Tensor, dtype: torch.dtype) -> bool:
    return bool((values.abs() > torch.finfo(dtype).max).any())


def _like(own: Tensor, loaded: Tensor, repaired: Tensor) -> Tensor:
    """Return `repaired` in the shape and type of the file's `own` tensor, or `own` if the repair changed nothing.

    Otherwise a float64 tensor that was loaded into a float32 DNN would come back rounded.
    """
    if torch.equal(loaded.to(repaired), repaired):
        return own
    return repaired.cpu().reshape(own.shape).to(own.dtype)


def _around(file: WeightsFile, fitted: FitResult, rounded: list[torch.dtype]) -> str:
    around = [f"prefix {fitted.prefix!r}"] if fitted.prefix else []
    around += [f"entry {file.entry!r}"] if file.entry is not None else []
    around += [f"rounded to {dtype}".replace("torch.", "") for dtype in rounded]
    return ", ".join(around) or "the same names"
