"""What an erring judge saw, corrected by its measured errors."""

from __future__ import annotations

import numpy as np
import pytest

from sd_scissorhands.evaluation.chance import corrected


def test_a_judge_without_error_changes_nothing_but_the_interval():
    share, low, high = corrected(30, 100, (100, 100), (0, 100))
    assert share == 0.3 and 0.2 < low < 0.3 < high < 0.42


def test_known_errors_are_taken_out():
    assert corrected(28, 100, (90, 100), (10, 100))[0] == pytest.approx((0.28 - 0.1) / 0.8)
    assert corrected(5, 100, (90, 100), (10, 100))[0] == 0.0  # fewer than by its false alarms alone
    assert corrected(95, 100, (90, 100), (10, 100))[0] == 1.0


@pytest.mark.parametrize("errors", [((50, 100), (50, 100)), ((10, 100), (90, 100)), ((0, 0), (1, 9)), ((9, 9), (0, 0))])
def test_a_judge_that_tells_no_difference_has_no_correction(errors):
    assert corrected(3, 10, *errors) is None


@pytest.mark.parametrize(
    ("truth", "sensitivity", "false_rate"), [(0.05, 0.95, 0.02), (0.3, 0.8, 0.1), (0.9, 0.9, 0.05)]
)
def test_the_interval_holds_the_truth_in_about_95_of_100_cases(truth, sensitivity, false_rate):
    rng, held, cases = np.random.default_rng(0), 0, 400
    for _ in range(cases):
        seen = rng.binomial(120, truth * sensitivity + (1 - truth) * false_rate)
        found = corrected(
            int(seen), 120, (int(rng.binomial(80, sensitivity)), 80), (int(rng.binomial(80, false_rate)), 80)
        )
        held += bool(found and found[1] <= truth <= found[2])
    assert held / cases >= 0.92
