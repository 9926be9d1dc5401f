from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsprig import __version__, cli
from fedsprig.errors import FedsprigError

HEAVY = ("torch", "torchvision", "flwr", "sqlalchemy", "ray")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["simulate", "--help"], ["bench", "adapters", "--help"]],
)
def test_help_starts_without_the_heavy_libraries(arguments: list[str]) -> None:
    program = (
        "import sys; from fedsprig.cli import run; code = run(sys.argv[1:]);"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert name in shown
        assert entry.help in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"fedsprig {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fedsprig {__version__}\n"


def test_a_misspelt_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctr"]) == 2
    shown = capsys.readouterr().err
    assert "Did you mean 'doctor'?" in shown
    assert shown.count("\n") == 1


def test_every_named_error_has_a_code_of_its_own() -> None:
    errors = importlib.import_module("fedsprig.errors")
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, FedsprigError)
    ]
    codes = [error.exit_code for error in classes]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


def test_doctor_writes_its_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor", "--json", str(tmp_path / "findings.json")])
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert code == int(any(finding["mend"] for finding in findings))
    names = {finding["name"]: finding for finding in findings}
    assert names["numpy"]["value"] == importlib.metadata.version("numpy")
    assert names["fashion.npz"]["value"] == "intact"
    assert "readable" in names["demo"]["value"]
    assert "fashion.npz" in capsys.readouterr().out
