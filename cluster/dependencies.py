"""Print the packages that pyproject.toml and the given extras require, one per line.

Use it to install an environment without the code: for an image layer that survives code changes, or for a node that
gets the code with each job. It needs only the standard library.

    python cluster/dependencies.py pyproject.toml efficientnet-lite0 > requirements.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the requirements of the project and of `extras`, as pip reads them. Exits if an extra is unknown."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        sys.exit(f"{pyproject} has no extra {', '.join(unknown)}. There are: {', '.join(sorted(optional))}.")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("No pyproject.toml is given. Usage: python cluster/dependencies.py pyproject.toml [EXTRA …]")
    print("\n".join(dependencies(Path(sys.argv[1]), sys.argv[2:])))
