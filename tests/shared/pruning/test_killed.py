"""A run that was killed and resumed ends, to the bit, as one that was not."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")


def pruned(folder, case, capsys):
    """The run in this process: what it says, and the bytes of its weights."""
    spec = importlib.util.spec_from_file_location("killed_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    capsys.readouterr()
    module.main(str(folder), *case)
    return capsys.readouterr().out.splitlines(), (folder / "product").read_bytes()


def kill_at(folder, case, line):
    """Kill the run in the middle of the training that it tells of in a line."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *case],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for said in process.stdout:
        if said.strip() == line:
            break
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize(
    ("case", "kills"),
    [
        (("aap", "accuracy", "0%", "rate"), ((1, 2), (4, 5))),
        (("aap", "memory", "30%", "weights"), ((1, 5),)),
        (("taylor", "accuracy", "0%", "rate"), ((0, 5), (3, 2))),
        (("pdp", "accuracy", "0%", "rate"), ((1, 2), (3, 5))),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_resumed_is_uninterrupted(tmp_path, capsys, case, kills):
    said, product = pruned(tmp_path / "whole", case, capsys)
    stages = list(dict.fromkeys(line.rpartition(" ")[0] for line in said if "/" in line))
    for number, step in kills:
        kill_at(tmp_path / "killed", case, f"{stages[number]} {step}/6")
    again, resumed = pruned(tmp_path / "killed", case, capsys)
    assert resumed == product
    # Epochs that were whole before the last kill are not done again.
    number, step = kills[-1]
    begun = said.index(f"{stages[number]} {1 if step <= 3 else 4}/6")
    assert again == said[-len(again) :]
    assert len(again) <= len(said) - begun  # it may have gone on for a while before it was killed
    assert again[0].rpartition(" ")[2] in ("1/6", "4/6")
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
