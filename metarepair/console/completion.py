"""Complete verbs, options and settings in a shell, by the package argcomplete.

The shell calls `metarepair` itself with `_ARGCOMPLETE` set, so that completion is always that of the installed version.
"""

from __future__ import annotations

import argparse
import os

SHELLS = ("bash", "zsh", "fish")


def complete(parser: argparse.ArgumentParser) -> None:
    """If a shell asks for completions, write them and end the process."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def completion_script(shell: str) -> str:
    """Return the script that a shell sources to complete `metarepair`."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["metarepair"], shell=shell)


def settings_completer(prefix: str, **_: object) -> list[str]:
    """Return the settings that begin with `prefix`, for `--set`."""
    from metarepair.config.load import known_keys

    return [f"{key}=" for key in known_keys() if key.startswith(prefix)]


def keys_completer(prefix: str, **_: object) -> list[str]:
    """Return the settings and sections that begin with `prefix`, for `--explain`."""
    from metarepair.config.load import known_keys
    from metarepair.config.run import Config

    return sorted(key for key in {*Config.model_fields, *known_keys()} if key.startswith(prefix))
