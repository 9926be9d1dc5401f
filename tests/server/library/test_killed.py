"""A process that is killed while it commits loses nothing that it said was committed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedsprig_server.library import Library, Run

SCRIPT = Path(__file__).with_name("committing.py")
KILLS = 6


def committing() -> Any:
    spec = importlib.util.spec_from_file_location("committing", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def killed_after(folder: Path, rounds: int, seconds: float) -> int:
    """Run the script, kill it ``seconds`` after it said it has committed that many rounds.

    Returns:
        The last round that it said.
    """
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = b"".join(process.stdout.readline() for _ in range(rounds))
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    rest, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    # A last line without its end was being written: whether it counts is for the library to say.
    return int((said + rest).decode().rpartition("\n")[0].split()[-1])


def check(folder: Path, said: int) -> int:
    """Everything that was said is there, once, intact; returns the last round."""
    with Library(folder) as library:
        rounds = library.rounds("run")
        last = rounds[-1].round
        # The kill may fall between the commit and saying so, never the other way round.
        assert said <= last <= said + 1
        assert [item.round for item in rounds] == list(range(1, last + 1))
        expected = committing().adapter
        for item in rounds:
            assert library.blobs.get(item.adapter) == expected(item.round)
        run = library.run("run")
        assert run is not None
        assert run.round == last
        assert run.state["sum"] == rounds[-1].state["sum"] == last * (last + 1) // 2
        assert library.verify() == []
        return last


def test_what_was_committed_is_there_whole_and_once_however_often_it_is_killed(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    last = 0
    for kill in range(KILLS):
        said = killed_after(tmp_path, rounds=2, seconds=float(rng.uniform(0, 0.06)))
        assert said >= last + 2
        last = check(tmp_path, said)
        with Library(tmp_path) as library:
            run = library.run("run")
            assert run is not None
            assert run.state["starts"] == kill + 1


def test_a_round_whose_row_was_not_written_is_done_again(tmp_path: Path) -> None:
    # As after a kill between blob and row: the blob is there, nothing else.
    with Library(tmp_path) as library:
        library.save_run(Run("run", "rounds", 0, {}, {"sum": 0}))
        lone = library.blobs.put(b"after round 1")
    with Library(tmp_path) as library:
        assert library.latest_round("run") is None
        assert library.verify() == []
        assert library.commit_round("run", 1, b"after round 1", {}, {"sum": 1}).adapter == lone


def test_processes_that_start_together_do_not_fail_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from fedsprig_server.library import Library, Run\n"
        "library, name = Library(sys.argv[1]), sys.argv[2]\n"
        "library.save_run(Run(name, 'rounds', 0, {}, {}))\n"
        "for number in range(1, 11):\n"
        "    library.commit_round(name, number, f'{name} {number}'.encode(), {}, {})\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"run{n}"]) for n in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with Library(tmp_path) as library:
        assert [(run.name, run.round) for run in library.runs()] == [
            (f"run{n}", 10) for n in range(3)
        ]
        assert library.verify() == []
