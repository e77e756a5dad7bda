from collections.abc import Callable

import pytest

from adderzoo.engine.benchmark import timing
from adderzoo.engine.benchmark.timing import ROUNDS, Local, Queued, RunError, Timing, interleave


class Scripted:
    """Notes when it is its turn, and says that a run took so long."""

    def __init__(self, name: str, turns: list[str], seconds: float, fails_at: int = -1) -> None:
        self.name, self.turns, self.seconds, self.fails_at = name, turns, seconds, fails_at

    def warm_up(self) -> float:
        return self.visit(0)[0]

    def visit(self, seconds: float) -> list[float]:
        if self.turns.count(self.name) == self.fails_at:
            raise RunError("no more")
        self.turns.append(self.name)
        return [self.seconds] * 2


def run(seconds: float, **runners: tuple[float, int]) -> tuple[dict[str, Timing], dict[str, str], str]:
    turns: list[str] = []
    timings, errors = interleave({name: Scripted(name, turns, *args) for name, args in runners.items()}, seconds)
    return timings, errors, "".join(turns)


def test_runners_take_turns() -> None:
    timings, errors, turns = run(1, A=(0.01, -1), B=(0.03, -1), C=(0.02, -1))
    assert turns == "ABC" * (1 + ROUNDS)
    assert errors == {}
    assert [(timing.median, timing.runs) for timing in timings.values()] == [(0.01, 20), (0.03, 20), (0.02, 20)]


def test_long_runs_drop_out_after_three_rounds_and_very_long_ones_after_the_warm_up() -> None:
    timings, errors, turns = run(1, A=(0.01, -1), B=(0.9, -1), C=(30.0, -1))
    assert turns == "ABC" + 3 * "AB" + (ROUNDS - 3) * "A"
    assert errors == {}
    assert timings["C"] == Timing((30.0,), 1)
    assert timings["B"] == Timing((0.9,) * 3, 6)


def test_a_runner_that_fails_is_left_out_and_the_others_go_on() -> None:
    timings, errors, turns = run(1, A=(0.01, 0), B=(0.01, 4), C=(0.01, -1))
    assert errors == {"A": "no more", "B": "no more"}
    assert list(timings) == ["C"]
    assert turns.count("C") == 1 + ROUNDS


def test_a_ratio_does_not_see_a_drift_of_the_clock() -> None:
    clock = [1.0, 1.3, 0.8, 2.0, 1.1]
    slow, fast = Timing(tuple(2 * c for c in clock), 5), Timing(tuple(clock), 5)
    assert fast.speedup_over(slow) == 2
    assert slow.speedup_over(fast) == 0.5
    assert (slow / 4).speedup_over(fast) == 2
    assert Timing(tuple(clock[:2]), 2).speedup_over(slow) == 2  # of the rounds that both have


def test_median_and_spread() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0), 50)
    assert (timing.median, timing.quartiles, timing.spread) == (3.0, (2.0, 4.0), 1 / 3)
    assert (Timing((2.0,), 1).quartiles, Timing((2.0,), 1).spread) == ((2.0, 2.0), 0.0)


def test_a_visit_runs_what_fits_and_does_not_count_the_first() -> None:
    runs: list[int] = []
    local = Local(lambda: runs.append(sum(range(10_000))))
    times = local.visit(0.02)
    assert len(runs) == len(times) + 1
    assert min(times) > 0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_visit_has_a_run_at_least(seconds: float) -> None:
    assert len(Local(lambda: None).visit(seconds)) == 1


class Later:
    """A device that does what it was told when it is waited for, and the clock on which a piece of it takes so long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.queue, self.done = seconds, 0.0, 0, 0
        self.waits: list[int] = []

    def run(self) -> None:
        self.queue += 1

    def synchronize(self) -> None:
        self.now += self.seconds * self.queue
        self.waits.append(self.queue)
        self.done += self.queue
        self.queue = 0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[Later, Queued]]:
    def make(seconds: float) -> tuple[Later, Queued]:
        device = Later(seconds)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: device.now)
        return device, Queued(device.run, device.synchronize)

    return make


def test_queued_runs_are_timed_when_they_are_done(later: Callable[[float], tuple[Later, Queued]]) -> None:
    device, queued = later(0.25)
    device.queue = 3  # of another, before
    assert queued.warm_up() == 0.25
    assert (device.queue, device.done) == (0, 3 + 2)  # one, that may load libraries, and the one that counts


def test_queued_runs_of_a_visit_follow_one_another_without_waiting(
    later: Callable[[float], tuple[Later, Queued]],
) -> None:
    device, queued = later(0.0625)
    assert queued.visit(1.0) == [0.0625] * 16
    assert [count for count in device.waits if count] == [1, 1, 16]  # two to see how long one takes
    device, queued = later(0.5)
    assert queued.visit(1.0) == [0.5] * 2
    assert [count for count in device.waits if count] == [1, 2]


def test_a_long_queued_run_is_not_repeated(later: Callable[[float], tuple[Later, Queued]]) -> None:
    device, queued = later(3.0)
    assert queued.visit(1.0) == [3.0]
    assert device.done == 1
    device, queued = later(0.125)
    assert queued.visit(0.0) == [0.125]
