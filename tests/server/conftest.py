"""A clock that only goes on where the program sleeps, so that waiting can be counted."""

import pytest


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self):
        self.now = 0.0
        self.sleeps = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fedsprig_server.scheduler.time", clock)
    monkeypatch.setattr("fedsprig_server.lobby.time", clock)
    return clock
