"""Check output to streams of any encoding, and the orderly end of a command whose stream cannot be written."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarepair.console.streams import PIPE_CLOSED, PLAIN, watched_streams
from metarepair.inspection.command import show_status

ROOT = Path(__file__).parents[3]
WORDS = "compare repair methods: methods {0} targets {0} seeds"


def command(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `metarepair` in a separate process, through a shell that redirects its streams."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    line = " ".join(["exec", sys.executable, "-m", "metarepair", *arguments, redirect])
    env = kept | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", line], capture_output=True, env=env, check=False)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "×"),
        ("latin-1", "×"),
        ("cp1252", "×"),
        ("iso-8859-15", "×"),
        ("euc-jp", "×"),
        ("ascii", "x"),
        ("ascii:replace", "?"),
    ],
)
def test_the_help_is_printed_to_a_stream_of_any_encoding(encoding: str, shown: str) -> None:
    done = command("--help", PYTHONIOENCODING=encoding, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, b"")
    assert WORDS.format(shown) in done.stdout.decode(encoding.partition(":")[0])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_character_that_the_encoding_lacks_is_replaced_by_plain_text(encoding: str) -> None:
    code = (
        "from metarepair.console.streams import watched_streams\nimport sys\n"
        "with watched_streams():\n"
        "    print('θ_meta, α, β, Σ: 1 − 2 → 3…')\n    print('ж and \\udcff', file=sys.stderr)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    plain = "theta_meta, alpha, beta, Sigma: 1 - 2 -> 3"
    assert done.stdout.decode(encoding).rstrip() in (f"{plain}...", f"{plain}…"), done.stderr
    assert done.stderr.decode(encoding).rstrip() == r"\u0436 and \udcff"


def test_the_replacement_is_readable_or_an_escape_that_loses_nothing() -> None:
    with watched_streams():
        pass  # registers the handler
    assert "2.5 ± 0.1, ≥ 3 × 4 · 5, θ∞".encode("ascii", PLAIN) == b"2.5 +/- 0.1, >= 3 x 4 * 5, thetainf"
    assert "é\udcff".encode("ascii", PLAIN) == rb"\xe9\udcff"
    with pytest.raises(UnicodeDecodeError):
        codecs.decode(b"\xff", "utf-8", PLAIN)


def test_the_help_is_printed_in_a_c_locale_without_utf8() -> None:
    done = command("--help", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, b"")
    assert WORDS.format("x") in done.stdout.decode("ascii")


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("arguments", [("corruptions", "--list"), ("--help",), ("status", "nowhere")])
def test_a_pipe_closed_by_its_reader_ends_the_command_silently(
    arguments: tuple[str, ...], both: bool
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "metarepair", *arguments],
            stdout=write,
            stderr=write if both else subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    finally:
        os.close(write)
    if arguments[0] == "status" and not both:  # its only output is an error, to a stream that is still read
        assert done.returncode == 2
        return
    assert (done.returncode, done.stderr or b"") == (PIPE_CLOSED, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("arguments", [("corruptions", "--list"), ("--version",)])
def test_output_to_a_full_disk_is_an_error_that_names_the_stream(arguments: tuple[str, ...]) -> None:
    done = command(*arguments, redirect="> /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"metarepair: the standard output cannot be written: No space left on device."
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("redirect", "code"), [(">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0)], ids=["out", "err", "all"]
)
def test_output_to_a_closed_stream_goes_into_no_other_file(redirect: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom metarepair.console.streams import watched_streams\n"
        "with watched_streams():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    print('words'); print('words', file=sys.stderr); sys.stdout.flush()\n"
        "    file.write(str(file.fileno())); file.close()\n",
        encoding="utf-8",
    )
    line = f"exec {sys.executable} {script} {redirect}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert int((tmp_path / "file").read_text(encoding="utf-8")) > 2


def test_an_error_for_a_closed_stream_still_sets_the_exit_code() -> None:
    done = command("status", "nowhere/at/all", redirect="2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_json_output_is_ascii_so_that_any_stream_can_encode_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "äθ"
    (run / "experiences").mkdir(parents=True)
    show_status(str(run), as_json=True)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)["path"] == str(run)
