"""The seconds of a measurement are those of all its starts."""

from __future__ import annotations

import pytest

from sd_scissorhands import elapsed
from sd_scissorhands.elapsed import FILE, Elapsed
from sd_scissorhands.machine import Processes
from sd_scissorhands.run import silent


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(elapsed.time, "monotonic", lambda: now[0])
    return now


def test_a_killed_measurement_counts_what_it_took_before(tmp_path, clock):
    killed = Elapsed(tmp_path, Processes())
    with killed.during(silent)("drawing", 2) as tick:
        clock[0] += 8
        tick(1)
        clock[0] += 2  # in which it is killed
    again = Elapsed(tmp_path, Processes())
    clock[0] += 1.5
    assert again.end() == 9.5
    assert Elapsed(tmp_path, Processes()).end() == 9.5  # repeated when all was done


@pytest.mark.parametrize("text", ["", "[1]", "-3", '"no"', "1e999", "1" + "0" * 400])
def test_a_damaged_file_counts_nothing(tmp_path, clock, text):
    (tmp_path / FILE).write_text(text)
    assert Elapsed(tmp_path, Processes()).end() == 0.0
