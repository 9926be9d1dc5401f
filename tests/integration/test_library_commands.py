"""What an operator sees of the library that a run has left."""

import json
import shutil

from fedsprig.cli import run


def test_list_show_and_verify(finished, tmp_path, capsys):
    out, _ = finished
    assert run(["library", "list", str(out / "library"), "--json", str(tmp_path / "l.json")]) == 0
    shown = capsys.readouterr().out
    for text in ("lib-1", "lib-2", "low", "high", "held out", "own pictures"):
        assert text in shown
    assert {entry["name"] for entry in json.loads((tmp_path / "l.json").read_text())} == {
        "lib-1",
        "lib-2",
        "low",
        "high",
    }
    assert run(["library", "show", str(out / "library"), "low"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert {near["name"] for near in entry["lineage"]["neighbours"]} == {"lib-1", "lib-2"}
    assert run(["library", "verify", str(out / "library")]) == 0
    assert "4 tasks, every blob intact" in capsys.readouterr().out


def test_damage_is_found_and_named(finished, tmp_path, capsys):
    out, _ = finished
    shutil.copytree(out / "library", tmp_path / "library")
    assert run(["library", "show", str(tmp_path / "library"), "low"]) == 0
    adapter = json.loads(capsys.readouterr().out)["adapter"]
    (blob,) = (tmp_path / "library").rglob(adapter)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert run(["library", "verify", str(tmp_path / "library")]) == 70
    said = capsys.readouterr()
    assert "entry 'low', adapter" in said.out
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_a_mistyped_path_makes_no_library(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path / "nowhere", tmp_path):
        assert run(["library", "list", str(path)]) == 70
        assert "no library" in capsys.readouterr().err
    assert sorted(item.name for item in tmp_path.iterdir()) == ["notes.txt"]
