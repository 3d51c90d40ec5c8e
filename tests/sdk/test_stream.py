from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.data import Images, arrays, digits
from everlearn.data.streams import ClassIncremental, DomainIncremental


def made(classes: int, per_class: int = 2) -> Images:
    labels = [f"class {i:03}" for i in range(classes)] * per_class
    return arrays(np.zeros((len(labels), 4, 4), np.uint8), labels)


def test_the_class_order_is_that_of_the_published_code() -> None:
    np.random.seed(1993)
    order = np.random.permutation(100).tolist()
    data = made(100)
    stream = ClassIncremental(data, data, classes_per_task=10, seed=1993)
    assert stream.classes == tuple(data.classes[i] for i in order)
    assert tuple(name for task in stream for name in task.classes) == stream.classes


def test_a_seed_means_the_published_order_for_classes_that_are_numbers() -> None:
    labels = [str(number) for number in range(100)]
    data = arrays(np.zeros((100, 4, 4), np.uint8), labels)
    stream = ClassIncremental(data, data, classes_per_task=10, seed=1993)
    assert stream[0].classes == ("68", "56", "78", "8", "23", "84", "90", "65", "74", "76")
    assert ClassIncremental(data, data, classes_per_task=10)[1].classes == tuple(labels[10:20])


def test_a_stream_leaves_the_global_random_state_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    ClassIncremental(made(10), made(10), classes_per_task=2, seed=5)
    assert np.random.random() == expected


def test_without_a_seed_the_classes_stay_sorted() -> None:
    stream = ClassIncremental(made(6), made(6), classes_per_task=2)
    assert stream.classes == made(6).classes
    assert stream[0].classes == ("class 000", "class 001")


def test_an_uneven_first_task_and_a_smaller_last_one() -> None:
    stream = ClassIncremental(made(20), made(20), classes_per_task=5, first=7)
    assert [len(task.classes) for task in stream] == [7, 5, 5, 3]
    assert len(stream) == 4
    assert [len(t.classes) for t in ClassIncremental(made(4), made(4), 2, first=4)] == [4]


def test_tasks_are_found_by_index() -> None:
    stream = ClassIncremental(made(6), made(6), classes_per_task=2)
    assert stream[-1].index == 2
    assert stream[-1].classes == stream[2].classes
    with pytest.raises(IndexError):
        stream[3]


def test_a_task_looks_its_images_up_once_and_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    subset = Images.subset

    def counted(images: Images, indices: Any) -> Images:
        asked.append(len(indices))
        return subset(images, indices)

    monkeypatch.setattr(Images, "subset", counted)
    stream = ClassIncremental(made(6, 3), made(6, 2), classes_per_task=2, seed=0)
    assert [task.classes_so_far for task in stream] == [stream.classes[:end] for end in (2, 4, 6)]
    assert asked == []
    task = stream[1]
    for _ in range(3):
        assert (len(task.train), len(task.test), len(task.test_so_far)) == (6, 4, 8)
    assert asked == [6, 4, 8]


def test_real_digits_in_five_tasks() -> None:
    train, test = digits()
    stream = ClassIncremental(train, test, classes_per_task=2, seed=1993)
    assert [task.index for task in stream] == [0, 1, 2, 3, 4]
    for task in stream:
        assert set(task.train.classes) == set(task.test.classes) == set(task.classes)
        assert set(task.test_so_far.classes) == {
            c for t in stream for c in t.classes if t.index <= task.index
        }
    assert sum(len(task.train) for task in stream) == len(train)
    assert stream[4].test_so_far.labels == test.labels


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n) | st.none())
    ),
    st.integers(0, 2**32 - 1) | st.none(),
)
def test_every_class_comes_exactly_once(sizes: tuple[int, int, int | None], seed: int | None) -> None:
    classes, per_task, first = sizes
    stream = ClassIncremental(made(classes), made(classes), per_task, first, seed)
    assert sorted(name for task in stream for name in task.classes) == list(made(classes).classes)
    assert sum(len(task.train) for task in stream) == len(made(classes))
    assert all(task.classes for task in stream)
    assert all(len(task.classes) == per_task for task in list(stream)[1:-1])


def test_any_data_set_of_pairs_is_taken() -> None:
    pairs = [(np.zeros((4, 4), np.uint8), label) for label in "abab"]
    stream = ClassIncremental(pairs, pairs, classes_per_task=1)
    assert [task.train.labels for task in stream] == [("a", "a"), ("b", "b")]


def test_classes_that_are_tested_but_not_learned_are_refused() -> None:
    with pytest.raises(ValueError, match="classes in test but not in train: 'class 002'; all that are"):
        ClassIncremental(made(2), made(3), classes_per_task=1)
    with pytest.raises(ValueError, match=r"classes in test but not in train: .* and 3 more"):
        ClassIncremental(made(2), made(10), classes_per_task=1)


def test_classes_without_a_test_image_are_learned_with_others_and_told_of() -> None:
    images = arrays(np.zeros((12, 4, 4), np.uint8), ["a"] + ["b"] * 5 + ["c"] + ["d"] * 5)
    with pytest.warns(UserWarning, match="2 of 4 classes have no test image, .* not tested: 'a', 'c'"):
        stream = ClassIncremental(*images.split(0.8, seed=0), classes_per_task=1)
    assert stream.tasks == (("a", "b", "c"), ("d",))
    assert [task.train.classes for task in stream] == [("a", "b", "c"), ("d",)]
    assert [task.test.classes for task in stream] == [("b",), ("d",)]
    assert [task.test_so_far.classes for task in stream] == [("b",), ("b", "d")]
    with pytest.warns(UserWarning, match="no test image"):
        pairs = ClassIncremental(*images.split(0.8, seed=0), classes_per_task=2)
    assert pairs.tasks == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize("number", [0, -1, 5])
def test_numbers_of_classes_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"classes_per_task is {number}; expected 1 to 4"):
        ClassIncremental(made(4), made(4), classes_per_task=number)
    with pytest.raises(ValueError, match=f"first is {number}; expected 1 to 4"):
        ClassIncremental(made(4), made(4), classes_per_task=1, first=number)


def test_tasks_as_listed() -> None:
    data = made(6)
    names = data.classes
    stream = ClassIncremental(data, data, tasks=[[names[4]], (names[1], names[0])])
    assert stream.tasks == ((names[4],), (names[1], names[0]))
    assert stream.classes == (names[4], names[1], names[0])
    assert len(stream[1].test_so_far) == 6
    assert stream.at_once().tasks == (stream.classes,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [[]]}, "none empty"),
        ({"tasks": "ab"}, "list of lists"),
        ({"tasks": ["class 000"]}, "list of lists"),
        ({"tasks": [["class 000"], ["class 000"]]}, "more than once"),
        ({"tasks": [["no such class"]]}, "no images of class"),
        ({"tasks": [["class 000"]], "seed": 0}, "leave seed out"),
        ({"tasks": [["class 000"]], "classes_per_task": 1}, "leave classes_per_task out"),
        ({}, "classes_per_task is None"),
    ],
)
def test_what_is_wrong_with_listed_tasks_is_said(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClassIncremental(made(3), made(3), **arguments)


def test_domains_come_in_their_order() -> None:
    few, all_ = made(2), made(4)
    stream = DomainIncremental({"day": (few, few), "night": (all_, few)})
    assert (len(stream), stream.names, stream.classes) == (2, ("day", "night"), all_.classes)
    assert [(domain.index, domain.name, len(domain.train)) for domain in stream] == [
        (0, "day", 4),
        (1, "night", 8),
    ]
    assert stream[-1].name == "night"


@pytest.mark.parametrize(
    ("domains", "says"),
    [
        ({}, "give a dict"),
        ([(made(2), made(2))], "domains is list"),
        ({"day": made(2)}, "no pair"),
        ({"day": (made(2), made(4)), "night": (made(4), made(4))}, "domain 'day' tests classes"),
    ],
)
def test_what_is_no_stream_of_domains_is_said(domains: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DomainIncremental(domains)


def test_a_learner_is_measured_on_every_domain(tmp_path: Any) -> None:
    from everlearn import Frozen, Learner

    train, test = digits()
    train, test = train.of_classes("123"), test.of_classes("123").subset(range(0, 100, 3))
    train = train.subset(range(0, len(train), 8))

    def negative(images: Images) -> Images:
        return arrays(255 - np.stack([np.asarray(image) for image, _ in images]), list(images.labels))

    stream = DomainIncremental({"plain": (train, test), "negative": (negative(train), negative(test))})
    learner = Learner(method=Frozen(), device="cpu", progress=False)
    with pytest.raises(ValueError, match="no checkpoint"):
        learner.run(stream, checkpoint=tmp_path)
    matrix = learner.run(stream)
    assert matrix.values.shape == (2, 2)
    assert np.isfinite(matrix.values).all()
    assert matrix.values[1, 0] == learner.evaluate(test)
    assert matrix.values[1, 1] == learner.evaluate(negative(test))
    assert sum(learner.head.counts) == 2 * len(train)
    with pytest.raises(ValueError, match="give a fresh one"):
        learner.run(stream)


def test_domains_whose_classes_are_not_known_yet_are_not_measured() -> None:
    from everlearn import Frozen, Learner

    train, test = digits()
    train, test = train.subset(range(0, len(train), 8)), test.subset(range(0, len(test), 8))
    first, second = "12", "34"
    stream = DomainIncremental(
        {name: (train.of_classes(name), test.of_classes(name)) for name in (first, second)}
    )
    matrix = Learner(method=Frozen(), device="cpu", progress=False).run(stream)
    assert np.isnan(matrix.values[0, 1])
    assert np.isfinite(matrix.values[1]).all()
