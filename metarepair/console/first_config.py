"""Write a first, commented YAML file for a user's own photographs: `metarepair init`."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import yaml

from metarepair.config.photographs import NAME, TABLES, absolute
from metarepair.console.explain import SCHEMA
from metarepair.weights.hub import is_hub
from tasks.corruptions import CORRUPTIONS
from tasks.errors import ConfigError

# The values are those of `metarepair.config.user_defaults`, which `fix` uses; a test compares them.
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# With the schema beside this file, an editor completes, explains and checks its keys:
#   metarepair config --schema > {schema}
# Fill in your paths and the model, then:   metarepair run --config {file}
# What a key means, for example:            metarepair config --explain limits.max_clean_drop
name: {name} # of the run; its results are written to STORAGE_PATH/NAME
storage_path: runs
workers: 0 # Ray workers; 0: everything in this process

# Labelled photographs of the setting in which the model fails, those that it gets right included:
# `images`, a folder of class folders or Parquet files, or `table`, a CSV or JSON Lines file of path,label.
# A fifth of them only judges, unless `holdout` names other photographs for that.
targets: [{photographs}]
environments:
  {photographs}:
    {kind}: {images}
    # holdout: path/to/later_photographs

# Labelled clean images, on which the model works as it should: class folders or a table. A repair holds its accuracy
# on them.
data:
  name: images
  root: {clean}
  # classes: [cat, dog]            # in the order of the model's outputs; default: sorted names of the folders
  # image_size: 224                # side in pixels; default: images keep their size
  # mean: [0.485, 0.456, 0.406]    # of the pixels, as the model was trained; default: ImageNet's
  # std: [0.229, 0.224, 0.225]

# The model: timm:NAME, one of a hub, as hf-hub:ORG/NAME, or module:FACTORY, the import path of a function that returns
# an nn.Module.
model:
  name: {model}
  weights: {weights} # safetensors or torch.save

# What a repair may cost, measured on images that select: here at most half a point of accuracy on clean images.
limits: {{max_clean_drop: 0.005}}

# The methods to compare; the best one inside the limits is named. Without joint_sgd and metarepair, the run is much
# shorter: no experience is mined, and nothing is trained beforehand.
repair:
  methods: [joint_sgd, metarepair, sgd, bn_adapt, none]
  episodes: 5
  tasks: 4
  rates: [0.01, 0.03]
  clean_weight: 0.5

# What joint_sgd and metarepair learn from before they see your photographs: failures under these corruptions.
mining:
  experiences:
    [
{experiences}
    ]
  images: 1000 # clean images that are corrupted for each
  collect: 1000
  at_most: true
features: {{extractor: deployed}}
task: {{shots: 5, query_size: 50, clean_support: 50}}
inner: {{steps: 3, rate: 0.03, batch_norm_momentum: 0.5}}
train:
  start: joint
  tasks: 4
  query: {{failures: 0.25, environment: 0.25, clean: 0.5}}
evaluate: {{others: []}}
"""


def write_first_config(
    out: Path, *, images: str | None, clean: str | None, model: str | None, weights: str | None
) -> None:
    """Write the file; what is None stands there as a placeholder. Raises ConfigError if the file exists."""
    kind = "table" if images is not None and Path(images).suffix.lower() in TABLES else "images"
    text = TEMPLATE.format(
        schema=SCHEMA,
        file=_quoted(str(out)),
        name=_quoted(re.sub(r"[^A-Za-z0-9_-]", "_", out.stem)[:200]),
        photographs=NAME,
        kind=kind,
        images=_quoted(absolute(images) or "path/to/photographs"),
        clean=_quoted(absolute(clean) or "path/to/clean_images"),
        model=_quoted(model or "module:FACTORY"),
        weights=_quoted(absolute(weights) or (model if is_hub(model) else None) or "path/to/weights"),
        experiences=textwrap.indent(textwrap.fill(", ".join(CORRUPTIONS), 90), " " * 6),
    )
    try:
        with out.expanduser().open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise ConfigError(f"--out {out} exists already. Name another file, or delete it first.") from error


def _quoted(text: str) -> str:
    """The text in YAML's double quotes, on one line."""
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)).strip()
