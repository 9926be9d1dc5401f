"""The library: what goes in comes out, contradictions are refused, nothing is applied twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsprig.errors import (
    LibraryError,
    NewerSchemaError,
    PlanError,
    ProbeMismatchError,
    RoundConflictError,
    SketchError,
)
from fedsprig.graph import AxisMap, Group, GroupPlan
from fedsprig.masks import ScoreSet
from fedsprig.tasks import TaskSketch
from fedsprig_server.library import BaseRecord, Entry, Library, Run
from fedsprig_server.library import entries as entries_module

PROBE, PLAN = "a" * 64, "b" * 64


def sketch(seed: int, *, probe: str = PROBE, features: int = 4) -> TaskSketch:
    rng = np.random.default_rng(seed)
    return TaskSketch(
        probe=probe,
        prototypes=rng.normal(size=(3, features)).astype(np.float32),
        counts=np.array([4, 0, 2], np.int64),
        classes=("cat", "", "dog"),
        fingerprint=np.zeros(0, np.float32),
    )


def entry(library: Library, name: str, seed: int = 0, **changes: Any) -> Entry:
    made = Entry(
        name=name,
        base="base",
        plan=PLAN,
        method="taylor",
        sketch=library.blobs.put(sketch(seed).to_bytes()),
        scores=library.blobs.put(f"scores {seed}".encode()),
        masks={"phone": library.blobs.put(b"mask"), "board": library.blobs.put(b"other mask")},
        adapter=library.blobs.put(b"adapter"),
        metrics={"accuracy": 0.75},
        lineage={"neighbours": [{"name": "x", "weight": 0.1 + 0.2}], "seed": 2**62},
        created=1.5,
    )
    return replace(made, **changes)


@pytest.fixture
def library(tmp_path: Path) -> Any:
    with Library(tmp_path / "library") as opened:
        yield opened


def reopened(library: Library) -> Library:
    library.close()
    return Library(Path(library.database.name).parent)


def test_entries_come_back_as_they_were_in_the_order_they_came(library: Library) -> None:
    made = [entry(library, name, seed) for seed, name in enumerate(["z", "a", "m"])]
    made[1] = replace(made[1], base="other", adapter=None, masks={})
    for item in made:
        library.add_entry(item)
    with reopened(library) as again:
        assert again.entries() == made
        assert again.entries("base") == [made[0], made[2]]
        assert again.entries("nothing") == []
        assert again.entry("a") == made[1]
        with pytest.raises(LibraryError, match="no entry 'q'"):
            again.entry("q")


def test_many_entries_come_by_name_in_the_order_asked(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries_module, "_NAMES_A_QUERY", 2)
    made = {name: entry(library, name, seed) for seed, name in enumerate("abcde")}
    for item in made.values():
        library.add_entry(item)
    assert library.entries_named(["d", "a", "e"]) == [made["d"], made["a"], made["e"]]
    assert library.entries_named([]) == []
    with pytest.raises(LibraryError, match="no entry 'q'"):
        library.entries_named(["a", "q"])


def test_scores_follow_a_plan_and_the_last_used_stay_in_memory(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan()
    sets = [ScoreSet({"g": np.arange(4, dtype=np.float32) + n}) for n in range(3)]
    made = [
        entry(library, f"t{n}", plan=plan.digest, scores=library.blobs.put(item.to_bytes()))
        for n, item in enumerate(sets)
    ]
    monkeypatch.setattr(entries_module, "SCORES_KEPT_BYTES", 2 * sets[0].flat.nbytes)
    first = library.scores(made[0], plan)
    second = library.scores(made[1], plan)
    assert library.scores(made[0], plan) is first
    assert library.scores(made[2], plan) == sets[2]  # the second was used longest ago
    assert library.scores(made[0], plan) is first
    again = library.scores(made[1], plan)
    assert again is not second
    assert again == second == sets[1]
    with pytest.raises(PlanError, match="follows plan bbbb"):
        library.scores(replace(made[0], plan=PLAN), plan)


def _plan() -> GroupPlan:
    positions = np.arange(4, dtype=np.int32)[:, None]
    group = Group("g", 4, "inner", (AxisMap("w", 0, positions, "out"),), ())
    return GroupPlan("net", (1, 3, 8, 8), "", (group,), {"w": (4, 3)}, {}, {}, {})


def test_the_same_entry_again_does_nothing_and_another_is_refused(library: Library) -> None:
    first = entry(library, "task")
    library.add_entry(first)
    library.add_entry(replace(first, created=99.0))
    assert library.entries() == [first]
    for other in (
        replace(first, metrics={"accuracy": 0.5}),
        replace(first, masks={"phone": first.masks["phone"]}),
        replace(first, method="magnitude"),
    ):
        with pytest.raises(LibraryError, match="another entry 'task'"):
            library.add_entry(other)
    assert library.entries() == [first]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": ""}, "name"),
        ({"name": " task"}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"method": "\0"}, "method"),
        ({"masks": {"": PLAN}}, "mask label"),
        ({"plan": "plan"}, "no digest"),
        ({"adapter": "../x"}, "no digest"),
        ({"scores": "0" * 64}, "put it first"),
        ({"masks": {"m": "0" * 64}}, "put it first"),
        ({"metrics": {"accuracy": float("nan")}}, "metrics"),
        ({"lineage": {"x": np.float32(1)}}, "lineage"),
    ],
)
def test_a_malformed_entry_is_refused(library: Library, changes: Any, text: str) -> None:
    with pytest.raises(LibraryError, match=text) as caught:
        library.add_entry(replace(entry(library, "task"), **changes))
    assert "\n" not in str(caught.value)
    assert library.entries() == []


def test_sketches_of_different_probes_never_mix(library: Library) -> None:
    library.add_entry(entry(library, "one"))
    for other in (sketch(1, probe="c" * 64), sketch(1, features=5)):
        with pytest.raises(ProbeMismatchError, match="'one'"):
            library.add_entry(entry(library, "two", sketch=library.blobs.put(other.to_bytes())))
    assert library.index("base").names == ("one",)
    elsewhere = library.blobs.put(sketch(1, probe="c" * 64).to_bytes())
    library.add_entry(entry(library, "two", sketch=elsewhere, base="other"))
    assert library.index("other").probe == "c" * 64
    with pytest.raises(SketchError):
        library.add_entry(entry(library, "three", sketch=library.blobs.put(_no_sketch())))


def _no_sketch() -> bytes:
    from fedsprig.artifacts import pack

    return pack({"x": np.zeros(1)})


def test_the_index_is_kept_and_grows_with_every_process(library: Library) -> None:
    assert len(library.index("base")) == 0
    library.add_entry(entry(library, "one", 1))
    first = library.index("base")
    assert library.index("base") is first
    with Library(Path(library.database.name).parent) as other:
        other.add_entry(entry(other, "elsewhere", 2, base="other"))
        assert library.index("base") is first
        other.add_entry(entry(other, "two", 3))
        fresh = other.index("base")
    grown = library.index("base")
    assert grown.names == fresh.names == ("one", "two")
    for name in ("prototypes", "starts", "centre", "means"):
        np.testing.assert_array_equal(getattr(grown, name), getattr(fresh, name))


def test_the_index_misses_no_entry_that_is_committed_out_of_order(library: Library) -> None:
    def renumber(name: str, number: int) -> None:
        with sqlite3.connect(library.database.name) as raw:
            raw.execute("UPDATE entries SET id = ? WHERE name = ?", (number, name))
        raw.close()

    library.add_entry(entry(library, "late", 1, masks={}))
    renumber("late", 50)
    assert library.index("base").names == ("late",)
    library.add_entry(entry(library, "early", 2, masks={}))
    renumber("early", 7)
    assert library.index("base").names == ("early", "late")


def test_bases_are_kept_and_cannot_change(library: Library) -> None:
    put = library.blobs.put
    record = BaseRecord("d" * 64, "sprig20", put(b"plan"), put(b"probe"))
    assert library.find_base(record.digest) is None
    library.add_base(record)
    library.add_base(record)
    assert library.find_base(record.digest) == record
    assert library.bases() == [record]
    assert library.stored_plan(record.digest) == b"plan"
    assert library.stored_plan("0" * 64) is None
    with pytest.raises(LibraryError, match="another plan or probe"):
        library.add_base(replace(record, probe=put(b"other")))
    with pytest.raises(LibraryError, match="put it first"):
        library.add_base(replace(record, digest="e" * 64, plan="0" * 64))


def test_runs_are_rewritten(library: Library) -> None:
    assert library.run("r") is None
    run = Run("r", "describe", 0, {"arms": ["one_shot"]}, {"seen": {"d": 1}})
    library.save_run(run)
    assert library.run("r") == run
    done = replace(run, phase="done", state={})
    library.save_run(done)
    library.save_run(replace(run, name="a"))
    assert [item.name for item in library.runs()] == ["a", "r"]
    with reopened(library) as again:
        assert again.run("r") == done


def test_a_round_moves_its_run_in_the_same_step(library: Library) -> None:
    library.save_run(Run("r", "rounds", 0, {}, {"masks": "m", "sum": 0}))
    assert library.latest_round("r") is None
    library.commit_round("r", 0, b"start", {}, {"sum": 1})
    made = library.commit_round("r", 1, b"next", {"loss": 0.5}, {"sum": 3})
    assert library.run("r") == Run("r", "rounds", 1, {}, {"masks": "m", "sum": 3})
    assert library.latest_round("r") == library.round_("r", 1) == made
    assert library.blobs.get(made.adapter) == b"next"
    assert [item.round for item in library.rounds("r")] == [0, 1]
    assert (made.metrics, made.state) == ({"loss": 0.5}, {"sum": 3})
    with pytest.raises(LibraryError, match="no round 2"):
        library.round_("r", 2)


def test_the_same_round_again_changes_nothing(library: Library) -> None:
    library.save_run(Run("r", "rounds", 0, {}, {}))
    first = library.commit_round("r", 1, b"x", {"loss": 1.0}, {"sum": 1})
    again = library.commit_round("r", 1, b"x", {"loss": 9.0}, {"sum": 2})
    assert again == first
    assert library.run("r") == Run("r", "rounds", 1, {}, {"sum": 1})


@pytest.mark.parametrize(
    ("number", "blob", "text"),
    [(2, b"other", "another adapter"), (4, b"z", "commit 3 next"), (0, b"z", "commit 3 next")],
)
def test_a_contradicting_round_is_refused(
    library: Library, number: int, blob: bytes, text: str
) -> None:
    library.save_run(Run("r", "rounds", 0, {}, {}))
    library.commit_round("r", 1, b"x", {}, {})
    library.commit_round("r", 2, b"y", {}, {"sum": 2})
    with pytest.raises(RoundConflictError, match=text):
        library.commit_round("r", number, blob, {}, {"sum": 7})
    assert library.run("r") == Run("r", "rounds", 2, {}, {"sum": 2})


def test_a_stale_record_cannot_undo_a_round(library: Library) -> None:
    stale = Run("r", "rounds", 0, {}, {})
    library.save_run(stale)
    library.commit_round("r", 1, b"x", {}, {})
    with pytest.raises(RoundConflictError, match="read the run again"):
        library.save_run(replace(stale, phase="done"))
    current = library.run("r")
    assert current is not None
    library.save_run(replace(current, phase="done"))
    assert library.run("r") == Run("r", "done", 1, {}, {})


def test_rounds_that_cannot_be_stored_are_refused(library: Library) -> None:
    with pytest.raises(LibraryError, match="no run 'r'"):
        library.commit_round("r", 1, b"x", {}, {})
    library.save_run(Run("r", "rounds", 0, {}, {}))
    for number in (-1, True, 1.0, 2**31):
        with pytest.raises(LibraryError, match="integer from 0 up"):
            library.commit_round("r", number, b"x", {}, {})  # type: ignore[arg-type]
    with pytest.raises(LibraryError, match="metrics"):
        library.commit_round("r", 1, b"x", {"loss": float("inf")}, {})
    with pytest.raises(LibraryError, match="state"):
        library.commit_round("r", 1, b"x", {}, {"x": object()})
    assert library.latest_round("r") is None


def test_threads_share_a_library(library: Library) -> None:
    errors: list[Exception] = []

    def work(name: str) -> None:
        try:
            library.save_run(Run(name, "rounds", 0, {}, {}))
            for number in range(1, 6):
                library.commit_round(name, number, f"{name} {number}".encode(), {}, {})
        except LibraryError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"r{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [run.round for run in library.runs()] == [5, 5, 5, 5]
    assert library.verify() == []


def test_verify_names_every_fault(library: Library) -> None:
    library.add_entry(entry(library, "sound", 1))
    broken = entry(library, "broken", 2)
    library.add_entry(broken)
    library.save_run(Run("r", "rounds", 0, {}, {}))
    for number in range(3):
        library.commit_round("r", number, f"x{number}".encode(), {}, {})
    assert library.verify() == []
    folder = library.blobs.folder
    (folder / broken.sketch[:2] / broken.sketch).write_bytes(b"rot")
    lost = library.round_("r", 2).adapter
    (folder / lost[:2] / lost).unlink()
    with sqlite3.connect(library.database.name) as raw:
        raw.execute("DELETE FROM rounds WHERE round = 1")
        raw.execute("UPDATE runs SET round = 1")
        raw.execute("DELETE FROM runs WHERE name = 'none'")
        raw.execute("INSERT INTO entry_masks VALUES (77, 'x', 'y')")
    raw.close()
    text = "\n".join(library.verify())
    assert "entry 'broken', sketch: blob" in text
    assert "damaged" in text
    assert "run 'r', round 2: blob" in text
    assert "rounds [0, 2] have gaps" in text
    assert "at round 1, but 2 is committed" in text
    assert "entry_masks names a row of entries" in text
    assert "sound" not in text.replace("unsound", "")


def test_verify_reads_what_a_restarted_server_would_go_on_from(library: Library) -> None:
    blobs = {
        key: library.blobs.put(key.encode())
        for key in ("sketch", "scores", "masks", "healed", "adapter")
    }
    state = {
        "sketch": blobs["sketch"],
        "scores": {"one_shot": blobs["scores"], "full": None},
        "masks": {"phone": blobs["masks"]},
        "healed": {blobs["masks"]: blobs["healed"]},
        "adapter": blobs["adapter"],
        "ledger": {"phone": "f" * 64},  # no blob
        "server_seconds": 1.5,
    }
    library.save_run(Run("r", "done", 0, {}, state))
    assert library.verify() == []
    for key, blob in blobs.items():
        path = library.blobs.folder / blob[:2] / blob
        path.write_bytes(b"rot")
        (problem,) = library.verify()
        assert problem.startswith(f"run 'r', {key}")
        assert "damaged" in problem
        path.write_bytes(key.encode())


def test_a_library_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Library(tmp_path).close()
    with sqlite3.connect(tmp_path / "library.sqlite3") as raw:
        raw.execute("UPDATE fedsprig_schema SET version = 99")
    raw.close()
    before = (tmp_path / "library.sqlite3").read_bytes()
    with pytest.raises(NewerSchemaError, match="update fedsprig"):
        Library(tmp_path)
    assert (tmp_path / "library.sqlite3").read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "library.sqlite3") as raw:
        raw.execute("CREATE TABLE runs (x)")
    raw.close()
    before = (tmp_path / "library.sqlite3").read_bytes()
    with pytest.raises(LibraryError, match="another program"):
        Library(tmp_path)
    assert (tmp_path / "library.sqlite3").read_bytes() == before
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "library.sqlite3").write_text("no database at all\n" * 100)
    with pytest.raises(LibraryError, match="not a database"):
        Library(tmp_path / "text")


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("sqlite://", "memory"),
        ("sqlite:///:memory:", "memory"),
        ("://x", "URL"),
        ("postgresql://host/name", "pass blobs"),
    ],
)
def test_a_place_that_cannot_hold_a_library_is_refused(location: str, text: str) -> None:
    with pytest.raises(LibraryError, match=text):
        Library(location)


def test_an_unknown_driver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="cannot use nothing") as caught:
        Library("nothing://host/name", blobs=tmp_path)
    assert "\n" not in str(caught.value)


def test_readers_go_on_while_one_writes(library: Library) -> None:
    with library.database.writing():
        assert library.runs() == []


def test_a_url_of_a_file_opens_the_same_library(tmp_path: Path, library: Library) -> None:
    library.save_run(Run("r", "rounds", 0, {}, {}))
    with Library(f"sqlite:///{library.database.name}") as again:
        assert again.run("r") is not None
        assert again.blobs.folder == library.blobs.folder


def test_it_needs_no_torch() -> None:
    code = "import sys, fedsprig_server.library; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def with_fingerprint(seed: int, units: int, groups: tuple[int, ...] = ()) -> bytes:
    fingerprint = np.ones(units, np.float32)
    return replace(sketch(seed), fingerprint=fingerprint, groups=groups).to_bytes()


def test_a_fingerprint_of_other_units_is_refused_at_the_door(library: Library) -> None:
    def add(name: str, sketch: bytes, base: str = "base") -> None:
        library.add_entry(entry(library, name, base=base, sketch=library.blobs.put(sketch)))

    add("none", with_fingerprint(0, 0))
    add("eight", with_fingerprint(1, 8))
    with pytest.raises(SketchError, match="'four' has a fingerprint of 4 units"):
        add("four", with_fingerprint(2, 4))
    add("grouped", with_fingerprint(3, 8, (2, 6)))
    library = reopened(library)
    with pytest.raises(SketchError, match="'halves' has a fingerprint of 8 units"):
        add("halves", with_fingerprint(4, 8, (4, 4)))
    add("again", with_fingerprint(5, 8, (2, 6)))
    add("silent", with_fingerprint(6, 0))
    add("elsewhere", with_fingerprint(7, 4), base="other")
    assert library.index("base").names == ("none", "eight", "grouped", "again", "silent")
    library.close()


@pytest.mark.parametrize("column", ["metrics", "lineage"])
@pytest.mark.parametrize("text", ["{bad", "", "[1]", "null", "[" * 5000])
def test_a_damaged_row_is_named(library: Library, column: str, text: str) -> None:
    for name in "abc":
        library.add_entry(entry(library, name))
    with sqlite3.connect(library.database.name) as raw:
        raw.execute(f"UPDATE entries SET {column} = ? WHERE name = 'b'", (text,))
    for ask in (
        library.entries,
        lambda: library.entry("b"),
        lambda: library.entries_named(["a", "b"]),
        lambda: library.add_entry(entry(library, "b")),
    ):
        with pytest.raises(LibraryError, match=f"entry 'b' is damaged: its {column}"):
            ask()
    assert library.entry("a").name == "a"


def test_a_damaged_run_is_an_error_of_the_library(library: Library) -> None:
    library.save_run(Run("r", "done", 0, {}, {}))
    with sqlite3.connect(library.database.name) as raw:
        raw.execute("UPDATE runs SET state = '{bad'")
    with pytest.raises(LibraryError, match="a row that is no JSON"):
        library.runs()
