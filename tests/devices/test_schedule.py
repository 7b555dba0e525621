"""The order and number of runs, on a clock that only moves when something runs."""

import pytest

from edgewise.devices.schedule import BURST, LONGEST, MOST_SAMPLES, interleave


class FakeMachine:
    """Runs that take as long as they are told, by a clock of its own, and a log of what ran."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.log: list[str] = []
        self.reports: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def taking(self, name: str, *seconds: float) -> "Run":
        return Run(self, name, seconds)

    def measure(self, *runs: "Run", seconds: float, rounds: int) -> list[list[float]]:
        return interleave(runs, seconds=seconds, rounds=rounds, clock=self.clock, report=self.reports.append)


class Run:
    def __init__(self, machine: FakeMachine, name: str, seconds: tuple[float, ...]) -> None:
        self.machine, self.name, self.seconds, self.count = machine, name, seconds, 0

    def __call__(self) -> None:
        self.machine.now_s += self.seconds[self.count % len(self.seconds)]
        self.machine.log.append(self.name)
        self.count += 1


def test_by_hand() -> None:
    """0.25 s warms up a run of 0.125 s in two; a round of both takes 0.625 + 1.25 s, and two of them pass 3 s."""
    machine = FakeMachine()
    samples = machine.measure(machine.taking("a", 0.125), machine.taking("b", 0.25), seconds=3.0, rounds=1)
    assert "".join(machine.log) == "aabb" + "aaaaabbbbb" * 2
    assert samples == [[0.125] * 10, [0.25] * 10]
    assert machine.reports == [1.875, 3.75]


def test_quick_runs_are_warmed_up_twenty_times() -> None:
    machine = FakeMachine()
    machine.measure(machine.taking("a", 0.0078125), seconds=0.01, rounds=1)
    assert len(machine.log) == 20 + BURST


def test_every_sample_is_kept_in_its_order() -> None:
    machine = FakeMachine()
    (samples,) = machine.measure(machine.taking("a", 0.5, 0.25, 1.0), seconds=1.0, rounds=2)
    assert machine.log == ["a"] * (2 + 10)
    assert samples == [1.0, 0.5, 0.25, 1.0, 0.5, 0.25, 1.0, 0.5, 0.25, 1.0]


def test_a_machine_that_slows_down_slows_all_of_them_alike() -> None:
    """Interleaved, the ratio of medians stays 2 although the speed halves after the first second."""

    class Slowing(FakeMachine):
        def taking(self, name: str, *seconds: float) -> Run:
            machine = self

            class Run2(Run):
                def __call__(self) -> None:
                    machine.now_s += self.seconds[0] * (1 if machine.now_s < 1001 else 2)

            return Run2(machine, name, seconds)

    machine = Slowing()
    a, b = machine.measure(machine.taking("a", 2.0**-8), machine.taking("b", 2.0**-7), seconds=4.0, rounds=1)
    assert sorted(b)[len(b) // 2] == 2 * sorted(a)[len(a) // 2]


def test_rounds_are_made_up_after_the_time() -> None:
    machine = FakeMachine()
    (samples,) = machine.measure(machine.taking("a", 0.5), seconds=4.0, rounds=4)
    assert len(samples) == 4 * BURST  # 10 s


def test_ten_times_the_time_is_the_end_however_few_the_rounds() -> None:
    machine = FakeMachine()
    a, b = machine.measure(machine.taking("a", 1.0), machine.taking("b", 1.0), seconds=1.5, rounds=100)
    assert len(a) == len(b) == 2 * BURST  # rounds of 10 s, and LONGEST makes 15
    assert LONGEST == 10


def test_one_round_is_run_whatever_it_takes() -> None:
    machine = FakeMachine()
    a, b = machine.measure(machine.taking("a", 60.0), machine.taking("b", 60.0), seconds=0.1, rounds=20)
    assert (a, b) == ([60.0] * BURST, [60.0] * BURST)


def test_samples_end_at_five_thousand() -> None:
    machine = FakeMachine()
    (samples,) = machine.measure(machine.taking("a", 2.0**-20), seconds=10.0, rounds=1)
    assert len(samples) == MOST_SAMPLES == 5000


def test_a_run_that_raises_ends_it() -> None:
    machine = FakeMachine()

    def fails() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        interleave([machine.taking("a", 1.0), fails], seconds=1, rounds=1, clock=machine.clock, report=print)
