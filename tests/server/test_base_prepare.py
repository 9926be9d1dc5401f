"""``fedsprig base prepare``: what it writes, what it refuses, and how it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer

from fedsprig.artifacts import pack, read_file
from fedsprig.cli import run
from fedsprig.errors import (
    DataError,
    InfeasibleBudgetError,
    LibraryError,
    RunError,
    UnknownNameError,
    WeightsError,
)
from fedsprig.models import build
from fedsprig.training import read
from fedsprig_server.base import Base
from fedsprig_server.library import Library
from fedsprig_server.library_build import BuildConfig, LibraryTask, build_library

SCRIPT = Path(__file__).with_name("base_preparing_run.py")
SETTINGS = {"batch_size": "8", "survey": "16", "ratios": "0.3,0.6", "learning_rate": "0.02"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Three digits and two garments, eight pictures each, in two files."""
    paths = []
    for name, classes in (("digits", 3), ("fashion", 2)):
        found = read("embedded", name=name)
        index = np.concatenate(
            [np.flatnonzero(found.labels == label)[:8] for label in range(classes)]
        )
        paths.append(tmp_path_factory.mktemp("data") / f"{name}.npz")
        np.savez(paths[-1], images=found.images[index], labels=found.labels[index])
    return paths


@pytest.fixture(scope="module")
def data(both):
    return both[0]


def line(out, *sources, settings=types.MappingProxyType({}), **changes):
    """The command line of a preparation that takes a moment."""
    options = {
        "model": "cifar_resnet20",
        "weights": "none",
        "image-size": "8",
        "steps": "5",
        "held-out": "0.25",
        "seed": "5",
        **changes,
    }
    words = ["base", "prepare", str(out)]
    for source in sources:
        words += ["--data", str(source)]
    for key, value in options.items():
        words += [f"--{key}", value]
    for key, value in {**SETTINGS, **settings}.items():
        words += ["--set", f"{key}={value}"]
    return words


@pytest.fixture(scope="module")
def prepared(both, tmp_path_factory):
    """The file of a run that nothing interrupted, and its report."""
    folder = tmp_path_factory.mktemp("prepared")
    out = folder / "base.safetensors"
    assert run([*line(out, *both), "--json", str(folder / "report.json")]) == 0
    return out, json.loads((folder / "report.json").read_text())


def test_the_file_is_a_bases_weights(prepared):
    out, report = prepared
    base = Base.load("cifar_resnet20", str(out), image_size=8)
    assert base.digest == report["base"] != report["original"]
    assert Base.load("cifar_resnet20", None, image_size=8).digest == report["original"]
    assert build("cifar_resnet20", num_classes=7, weights=out).linear.out_features == 7


def test_a_report_that_cannot_be_written_is_said_before_the_work(both, tmp_path, capsys):
    out = tmp_path / "base.safetensors"
    assert run([*line(out, *both), "--json", str(tmp_path)]) != 0
    assert "no regular file; choose another path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_report_compares_both_bases_at_every_width(prepared, both, capsys):
    out, report = prepared
    assert list(report["before"]) == list(report["after"]) == ["1", "0.6", "0.3"]
    assert all(0 <= value <= 1 for part in ("before", "after") for value in report[part].values())
    assert report["before"] != report["after"]
    assert report["masks"] == "magnitude"
    assert not list(out.parent.glob("*.unfinished"))
    # The same command again: nothing is trained, the same is said.
    written = out.stat().st_mtime_ns
    assert run(line(out, *both)) == 0
    shown = capsys.readouterr().out
    for text in ("MACs kept", "100 %", "60 %", "30 %", report["base"][:12]):
        assert text in shown
    assert out.stat().st_mtime_ns == written


def test_a_run_that_was_killed_ends_as_one_that_was_not(prepared, both, tmp_path, capsys):
    out = tmp_path / "base.safetensors"
    killed = subprocess.run(
        [sys.executable, str(SCRIPT), "3", *line(out, *both)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors.unfinished"]
    assert run(line(out, *both, seed="6")) == RunError.exit_code
    assert "another run" in capsys.readouterr().err
    assert run(line(out, *both)) == 0
    theirs, mine = (build("cifar_resnet20", num_classes=2, weights=w) for w in (prepared[0], out))
    for name, value in mine.state_dict().items():
        assert np.array_equal(value, theirs.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_another_command_does_not_write_over_a_file(prepared, both, capsys):
    before = prepared[0].read_bytes()
    assert run(line(prepared[0], *both, seed="6")) == RunError.exit_code
    assert "remove it or give another name" in capsys.readouterr().err
    assert prepared[0].read_bytes() == before


def test_the_masks_of_a_library_take_part(data, tmp_path):
    base = Base.load("cifar_resnet20", None, image_size=8)
    pictures = read("npz", str(data))
    with Library(tmp_path / "library") as library:
        build_library(library, base, [LibraryTask("three", pictures)], BuildConfig(steps=0))
    reports = []
    for number, more in enumerate([[], ["--library", str(tmp_path / "library")]]):
        out, report = tmp_path / f"{number}.safetensors", tmp_path / f"{number}.json"
        assert run([*line(out, data), *more, "--json", str(report)]) == 0
        reports.append(json.loads(report.read_text()))
    assert [report["masks"] for report in reports] == ["magnitude", "library"]
    assert reports[0]["base"] != reports[1]["base"]


def test_a_library_of_another_base_is_refused(data, tmp_path, capsys):
    Library(tmp_path / "library").close()
    out = tmp_path / "base.safetensors"
    words = line(out, data, library=str(tmp_path / "library"))
    assert run(words) == LibraryError.exit_code
    assert "knows no task of this base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "more", "error", "message"),
    [
        ("base.pt", {}, WeightsError, "ends in .safetensors"),
        ("base.safetensors", {"library": "nowhere"}, LibraryError, "there is no library nowhere"),
        (
            "base.safetensors",
            {"settings": {"ratios": "0.0001"}},
            InfeasibleBudgetError,
            "raise macs",
        ),
        ("base.safetensors", {"settings": {"rate": "1"}}, UnknownNameError, "unknown setting"),
        ("base.safetensors", {"held-out": "1.5"}, DataError, "between 0 and 1"),
        ("base.safetensors", {"settings": {"steps": "5"}}, typer.BadParameter, "use --steps"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(
    out, more, error, message, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(line(out, data, **more)) == error.exit_code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_a_name_is_refused(tmp_path, capsys):
    assert run(line(tmp_path / "base.safetensors", "")) == DataError.exit_code
    assert "a source of pictures is empty" in capsys.readouterr().err


def test_single_pictures_cannot_be_held_out(tmp_path, capsys):
    source = tmp_path / "few.npz"
    np.savez(source, images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.arange(3))
    assert run(line(tmp_path / "base.safetensors", source)) == DataError.exit_code
    message = capsys.readouterr().err
    assert str(source) in message.replace("\n", "")
    assert "--held-out" in message


def test_a_file_that_is_not_what_it_reports_is_refused(prepared, both, tmp_path, capsys):
    arrays, metadata = read_file(prepared[0])
    out = tmp_path / "base.safetensors"
    arrays["conv1.weight"] += 1
    report = json.loads(metadata["report"])
    for weights, told in (
        (arrays, metadata["report"]),
        (read_file(prepared[0])[0], "{bad"),
        (read_file(prepared[0])[0], "[1]"),
        (read_file(prepared[0])[0], json.dumps({"base": report["base"]})),
        (read_file(prepared[0])[0], json.dumps({**report, "before": 3})),
        (read_file(prepared[0])[0], None),
    ):
        other = {"run": metadata["run"]} if told is None else {**metadata, "report": told}
        out.write_bytes(pack(weights, other))
        assert run(line(out, *both)) == RunError.exit_code
        assert "damaged" in capsys.readouterr().err
