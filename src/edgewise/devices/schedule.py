"""Which artifact runs when, and for how long: the part of measuring that knows no runtime and no real clock."""

from collections.abc import Callable, Sequence

BURST = 5  # runs in a turn: on a device a network runs alone, with its own weights in the caches
MOST_SAMPLES = 5000  # of each artifact; more say nothing more about a median
LONGEST = 10  # times the seconds asked for; then even slow artifacts that had too few turns are stopped
WARM_UP_RUNS = (2, 20)  # at least, at most
WARM_UP_S = 0.25

Run = Callable[[], object]
Clock = Callable[[], float]


def interleave(
    runs: Sequence[Run], *, seconds: float, rounds: int, clock: Clock, report: Callable[[float], object]
) -> list[list[float]]:
    """Run each in turn, round after round, so that a machine that slows down slows all of them.

    Each first runs unmeasured, for a quarter of a second or 20 runs, at least twice. A turn is 5 runs, all of which
    are kept. It ends when `seconds` have passed and every run had its `rounds`; earlier when each has 5000 samples or
    ten times the seconds have passed.

    Args:
        runs: what is measured.
        seconds: for how long, all together, warm-up not counted.
        rounds: how many turns each has at least.
        clock: returns the time in seconds.
        report: is told the seconds that have passed, after each round.

    Returns:
        The seconds of each run's samples, in their order.
    """
    for run in runs:
        _warm_up(run, clock)
    samples: list[list[float]] = [[] for _ in runs]
    started, done, passed = clock(), 0, 0.0
    while not _enough(done, passed, seconds=seconds, rounds=rounds):
        for run, own in zip(runs, samples, strict=True):
            for _ in range(BURST):
                before = clock()
                run()
                own.append(clock() - before)
        done, passed = done + 1, clock() - started
        report(passed)
    return samples


def _enough(done: int, passed: float, *, seconds: float, rounds: int) -> bool:
    if done == 0:
        return False
    return done * BURST >= MOST_SAMPLES or passed >= LONGEST * seconds or (passed >= seconds and done >= rounds)


def _warm_up(run: Run, clock: Clock) -> None:
    least, most = WARM_UP_RUNS
    started = clock()
    for done in range(1, most + 1):
        run()
        if done >= least and clock() - started >= WARM_UP_S:
            return
