"""Schedules against values computed by hand from the equations of Chouliaras 2021, chapter 4."""

import math

import pytest

import filigree as fg
from filigree.config import Config
from filigree.dynamics import Product, Sum


def rates(schedule, epochs, at):
    return [round(schedule.rate(i, epochs), 12) for i in at]


def test_set():
    assert rates(fg.Constant(0.3), None, [0, 7, 499]) == [0.3, 0.3, 0.3]


def test_ldv():
    # 0.01 + 0.29 (500 - i) / 500
    assert rates(fg.LinearDecrease(), 500, [0, 10, 250, 499, 500]) == [0.3, 0.2942, 0.155, 0.01058, 0.01]


def test_osv():
    # T = 2 * 500 / 5 = 200: top at 0 and 200, middle at 50, bottom at 100
    assert rates(fg.Oscillation(), 500, [0, 50, 100, 150, 200]) == [0.3, 0.155, 0.01, 0.155, 0.3]
    assert fg.Oscillation().rate(10, 500) == pytest.approx(0.155 + 0.145 * math.cos(math.pi / 10))
    assert fg.Oscillation(k=3).rate(500 / 9, 500) == pytest.approx(0.01)  # half of T = 1000 / 9


def test_exd():
    assert rates(fg.ExponentialDecay(), None, [0, 1, 2]) == [0.3, 0.297, 0.29403]
    assert fg.ExponentialDecay().rate(10, None) == pytest.approx(0.2713146)


def test_exd_of_a_given_horizon_decays_equally_over_any_run():
    short = fg.ExponentialDecay(horizon=500)
    assert 1 - short.rate(1, 30) / short.rate(0, 30) == pytest.approx(0.1542, abs=1e-4)
    assert short.rate(30, 30) == pytest.approx(fg.ExponentialDecay().rate(500, None))
    assert short.needs_horizon
    assert not fg.ExponentialDecay().needs_horizon


def test_cosine_decay():
    # T_end at 75 of 100: alpha at 0, half of it at 37.5, nothing from 75 on
    schedule = fg.CosineDecay()
    assert rates(schedule, 100, [0, 37.5, 75, 99]) == [0.3, 0.15, 0.0, 0.0]
    assert schedule.rate(25, 100) == pytest.approx(0.15 * (1 + 0.5))
    assert schedule.needs_horizon


def test_the_plateau_figures_of_the_notes():
    at10 = [round(s.rate(10, 500), 3) for s in (fg.Oscillation(), fg.LinearDecrease(), fg.ExponentialDecay())]
    assert at10 == [0.293, 0.294, 0.271]


def test_composition():
    total = fg.Constant(0.1) + fg.ExponentialDecay(0.2, 0.5)
    assert isinstance(total, Sum)
    assert rates(total, None, [0, 1]) == [0.3, 0.2]
    assert isinstance(2 * fg.Constant(0.1), Product)
    assert rates(2 * fg.Constant(0.1), None, [3]) == [0.2]
    assert (fg.LinearDecrease() + 0.1).needs_horizon
    parts = fg.Sequence([(fg.LinearDecrease(0.4, 0.0), 4), (fg.Constant(0.05), None)])
    assert rates(parts, None, [0, 2, 3, 4, 9]) == [0.4, 0.2, 0.1, 0.05, 0.05]
    assert not parts.needs_horizon
    tail = fg.Sequence([(fg.Constant(0.3), 4), (fg.LinearDecrease(0.4, 0.0), None)])
    assert tail.needs_horizon
    assert rates(tail, 8, [4, 6]) == [0.4, 0.2]


@pytest.mark.parametrize(
    "schedule",
    [
        fg.Constant(0.2),
        fg.Static(),
        fg.Oscillation(k=2),
        fg.Constant(0.1) * fg.ExponentialDecay(),
        fg.Sequence([(fg.Constant(0.3), 4), (fg.LinearDecrease(), None)]),
        fg.Adaptive("val_loss"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_round_trip_through_plain_dicts(schedule):
    assert Config.from_dict(schedule.to_dict()) == schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.Constant(1.2), "Constant: zeta must be less than or equal to 1. Got 1.2."),
        (lambda: fg.Constant(zetta=0.2), "Constant: unknown field 'zetta'; the fields are zeta."),
        (lambda: fg.Oscillation(k=-1), "Oscillation: k must be greater than or equal to 0. Got -1."),
        (lambda: fg.Sequence([]), "Sequence: each part but the last needs a length"),
        (lambda: fg.Constant(0.1) + "x", "Sum: b"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert message in str(caught.value)


def test_a_sequence_stays_where_it_ended():
    schedule = fg.Sequence([(fg.Constant(0.3), 2), (fg.LinearDecrease(0.3, 0.0), 3)])
    assert rates(schedule, 10, range(8)) == pytest.approx([0.3, 0.3, 0.3, 0.2, 0.1, 0, 0, 0])


def test_adaptive_passes_over_an_epoch_without_a_number():
    schedule, memory = fg.Adaptive(), {}
    metric = schedule.metric
    rates = [schedule.follow({metric: value}, memory) for value in (2.0, 1.8, math.nan, 1.7)]
    assert rates[2] == rates[1] > rates[3] > schedule.zeta_min
    assert schedule.follow({metric: math.nan}, {}) == schedule.zeta_max
