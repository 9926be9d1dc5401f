from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsprig.cli import run
from fedsprig_sim.result import Result


def test_report_draws_a_finished_run_again(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result.write(tmp_path / "result.json")
    assert run(["report", str(tmp_path)]) == 0
    assert "footwear" in capsys.readouterr().out
    assert "footwear" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["simulate", "nowhere.toml"], 60, "there is no scenario nowhere.toml: check the path"),
        (["simulate", "x.toml", "--data", "own"], 2, "'own' is not of the form NAME=PATH"),
        (["simulate", "x.toml", "--runtime", "raj"], 2, "'raj' is not one of"),
        (["report", "nowhere"], 40, "cannot read nowhere"),
        (["bench", "one-sho"], 2, "one-sho"),
        (["bench", "switching", "--image-size", "4000"], 2, "4000 is not in the range"),
        (["bench", "adapters", "--batch-size", "100000"], 2, "100000 is not in the range"),
    ],
)
def test_wrong_command_lines(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('name = "mine"\nroundz = 3\n')
    assert run(["simulate", "mine.toml"]) == 60
    assert "mine.toml: unknown key roundz: did you mean 'rounds'?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("name", ["one-shot", "switching", "adapters", "fine-pruning"])
def test_bench_refuses_a_file_that_cannot_be_written_before_it_measures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for path, reason in (("file/figures.json", "cannot write"), (".", "no regular file")):
        assert run(["bench", name, "--json", path]) == 40
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert reason in shown.err
        assert shown.err.count("\n") == 1  # no word of progress
        assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bench_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--model", "cifar_resnet20", "--entries", "3", "--search-entries", "20"]
    assert run(["bench", "one-shot", *arguments, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert f"{figures['one_shot']['seconds']:8.3f} s   target 1.000 s" in shown
    assert f"{figures['search']['seconds']:8.3f} s   target 0.100 s" in shown
    assert "sketch to sub-network, 3 tasks" in shown
