"""What a person sees who gives up, or asks for what cannot be."""

import signal
import subprocess
import sys
import time

import pytest

from fedsprig.errors import InfeasibleBudgetError
from fedsprig_sim.progress import Silence
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.sections import BudgetSection


def test_an_impossible_budget_is_named_before_any_work(scenario, tmp_path):
    tight = scenario.model_copy(update={"budgets": {"watch": BudgetSection(weight_bytes=100)}})
    with pytest.raises(InfeasibleBudgetError, match=r"budgets\.watch: .* weight_bytes") as caught:
        run_scenario(tight, tmp_path / "out", runtime="in-process", progress=Silence())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "library").exists()


# Where the tests run in the background of a shell, Ctrl-C is ignored from birth.
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from fedsprig.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_ctrl_c_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-c", CHILD, "demo", "--out", str(tmp_path / "demo")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        ends = time.monotonic() + 120
        while not (tmp_path / "demo" / "library").exists() and time.monotonic() < ends:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130
    assert said.rstrip().splitlines()[-1].startswith("error: interrupted")
    assert "--resume" in said
    assert "Traceback" not in said
