"""pyproject.toml and names of extras in, the packages that they ask for out, one a line.

An environment without the code: an image's layer that outlives changes of the code, or a node whose code comes with
each job. Needs the standard library alone.

    python cluster/dependencies.py pyproject.toml efficientnet-lite0 > requirements.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: Path, extras: list[str]) -> list[str]:
    """Requirements of the project and of `extras`, as pip reads them. Exits where an extra is not one."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        sys.exit(f"{pyproject} has no extra {', '.join(unknown)}. There are: {', '.join(sorted(optional))}.")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Which pyproject.toml? python cluster/dependencies.py pyproject.toml [EXTRA …]")
    print("\n".join(dependencies(Path(sys.argv[1]), sys.argv[2:])))
