"""A preparation that kills itself at a step: the command itself, saved at every other step."""

from __future__ import annotations

import os
import signal
import sys

from fedsprig.cli import run
from fedsprig_server import base_prepare


class Doomed(base_prepare.Preparation):
    """Dies in the middle of a run."""

    at = 0

    def step(self, number: int) -> list[float]:
        """Train a step, or die."""
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(number)


def main(at: str, *line: str) -> int:
    """Run a command line until a step."""
    Doomed.at = int(at)
    base_prepare.Preparation = Doomed
    base_prepare.SAVE_EVERY = 2
    return run(line)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
