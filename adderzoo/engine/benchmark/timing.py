"""Times of things that are to be compared: in turns, A B C A B C ..., so that a drift of the clock hits all alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol, TypeVar

ROUNDS = 10

# A run this long is not noticeably longer for finding the caches full of another's data.
_LONGER_THAN_A_CACHE_MISS = 0.25

# What takes this many times its share of time in a single run is not run again.
_TOO_LONG = 10


class RunError(Exception):
    """Something cannot be run; the message says why."""


class Runner(Protocol):
    """Something to be timed. Both methods raise :class:`RunError`."""

    def warm_up(self) -> float:
        """Seconds of a first run."""

    def visit(self, seconds: float) -> list[float]:
        """Seconds of each of the runs that fit into `seconds`, at least one."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one run.

    Attributes:
        visits: The median of the runs of each round, in order.
        runs: How many runs that were.
    """

    visits: tuple[float, ...]
    runs: int

    @property
    def median(self) -> float:
        return median(self.visits)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the rounds; twice the same number where there was only one."""
        if len(self.visits) == 1:
            return self.visits[0], self.visits[0]
        low, _, high = quantiles(self.visits, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median; 0 where there was only one round."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median

    def __truediv__(self, parts: int) -> "Timing":
        """Of one of the equal parts of a run."""
        return Timing(tuple(seconds / parts for seconds in self.visits), self.runs)

    def speedup_over(self, other: "Timing") -> float:
        """How many runs of this fit into one of `other`: the median of the ratios in the rounds that both have."""
        return median(theirs / ours for ours, theirs in zip(self.visits, other.visits, strict=False))


class Local:
    """A function, timed in this process."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run

    def warm_up(self) -> float:
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started

    def visit(self, seconds: float) -> list[float]:
        until = time.perf_counter() + seconds
        times = [self.warm_up()]
        if times[0] < _LONGER_THAN_A_CACHE_MISS:
            times = [self.warm_up()]
        while time.perf_counter() + times[-1] < until:
            times.append(self.warm_up())
        return times


class Queued(Local):
    """A function that only tells a GPU what to do, timed by when all of it is done.

    Runs are timed together: waiting for each one would leave the GPU idle between them.
    """

    def __init__(self, run: Callable[[], object], synchronize: Callable[[], object]) -> None:
        super().__init__(run)
        self.synchronize = synchronize

    def warm_up(self) -> float:
        self.run()  # libraries are loaded for the first run of a kind, which can take seconds
        return self._together(1)

    def visit(self, seconds: float) -> list[float]:
        first = self._together(1)
        if first < _LONGER_THAN_A_CACHE_MISS:
            first = self._together(1)
        elif first >= seconds:
            return [first]
        runs = max(1, int(seconds / first))
        return [self._together(runs) / runs] * runs

    def _together(self, runs: int) -> float:
        self.synchronize()
        started = time.perf_counter()
        for _ in range(runs):
            self.run()
        self.synchronize()
        return time.perf_counter() - started


Key = TypeVar("Key", bound=Hashable)


def interleave(
    runners: Mapping[Key, Runner], seconds: float, note: Callable[[Key], object] = lambda key: None
) -> tuple[dict[Key, Timing], dict[Key, str]]:
    """Run the runners in turns, for some `seconds` each in all.

    One whose warm-up takes many times `seconds` is not run again. One whose runs are longer than its share of a round
    drops out early, after three rounds at least.

    Args:
        runners: What to time.
        seconds: Time for each.
        note: Called with the one whose turn it is.

    Returns:
        The timings, and for those that could not be run the reasons.
    """
    visits: dict[Key, list[list[float]]] = {}
    errors: dict[Key, str] = {}
    left = dict.fromkeys(runners, seconds)
    for index in range(-1, ROUNDS):
        for key in [key for key, rest in left.items() if index < 3 or rest > 0]:
            note(key)
            try:
                if index >= 0:
                    times = runners[key].visit(seconds / ROUNDS)
                    visits.setdefault(key, []).append(times)
                    left[key] -= sum(times)
                elif (first := runners[key].warm_up()) > _TOO_LONG * seconds:
                    visits[key] = [[first]]
                    del left[key]
            except RunError as error:
                errors[key] = str(error)
                del left[key]
    timings = {
        key: Timing(tuple(map(median, times)), sum(map(len, times)))
        for key, times in visits.items()
        if key not in errors
    }
    return timings, errors
