"""The time that is left of a benchmark, with a clock of the test's own."""

from typing import Any

from everlearn.evaluation import bench as benches
from everlearn.evaluation.left import Left


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_methods_take_what_they_took_before() -> None:
    clock = Seconds()
    left = Left(["fast", "slow", "fast", "slow"], clock=clock)
    left.begin("fast", tasks=2)
    assert left.told() == "run 1 of 4; 0 s"  # nothing is known yet
    clock.now += 1
    left.task()
    assert left.told() == "run 1 of 4; 1 s, at a guess 7 s left (2 runs are of methods not timed yet)"
    clock.now += 1
    left.task()
    left.end()
    left.begin("slow", tasks=4)
    clock.now += 100
    left.task()
    assert left.told() == "run 2 of 4; 1 min 42 s, about 11 min 42 s left"  # 3 x 100, 2 and 4 x 100
    clock.now += 300
    for _ in range(3):
        left.task()
    left.end()
    assert left.told() == "run 2 of 4; 6 min 42 s, about 6 min 42 s left"
    for name, took in (("fast", 2), ("slow", 400)):
        left.begin(name, tasks=1)
        clock.now += took / 2
        if name == "slow":
            assert left.told().endswith("about 3 min 20 s left")  # before its first task has ended
        clock.now += took / 2
        left.task()
        left.end()
    assert left.told() == "run 4 of 4; 13 min 24 s"


def test_what_goes_on_counts_what_it_has_to_do_still() -> None:
    clock = Seconds()
    left = Left(["slow", "slow"], {"slow": 50.0}, done=3, clock=clock)
    left.begin("slow", tasks=5, done=3)
    for _ in range(3):
        left.task()  # those that were done are told of again
    assert left.told() == "run 4 of 5; 0 s, about 1 min 40 s left"
    clock.now += 8
    left.task()
    assert left.told() == "run 4 of 5; 8 s, about 58 s left"
    left.end()  # half a run says nothing of a whole one
    assert left.told() == "run 4 of 5; 8 s, about 50 s left"
    left.begin("slow", tasks=5)
    clock.now += 3
    left.end(whole=False)
    assert left.told() == "run 5 of 5; 11 s"


def test_on_lines_tasks_are_told_now_and_then() -> None:
    class Bar:
        disable = True

        def set_description(self, *_: Any, **__: Any) -> None:
            pass

    clock, said = Seconds(), list[str]()
    left = Left(["a"], clock=clock)
    left.begin("a", tasks=9)
    for number in range(1, 9):
        clock.now += 4
        benches._describe(Bar(), left, "a, seed 0", said.append, f"task {number}: 90.0 %")
    assert said == [
        "a, seed 0, task 3: 90.0 %; run 1 of 1; 12 s, about 24 s left",
        "a, seed 0, task 6: 90.0 %; run 1 of 1; 24 s, about 12 s left",
    ]
