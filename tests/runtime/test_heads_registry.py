"""A head of somebody else's: defined here, with a kind of its own, and nothing else done for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import LDA, Aggregate, Bundle, EdgeLearner, Head, HeadState, from_state
from everlearn_runtime.heads import Classes, registry
from everlearn_runtime.heads.growing import PerClass
from everlearn_runtime.heads.sums import Joined, group_sums

from .conftest import MakeBundle, MakeImages

Array = NDArray[np.float64]


class DiagonalGaussian(Head):
    """A variance of its own for each class and feature, from the sums of squares."""

    kind: ClassVar[str] = "test_diagonal_gaussian"
    _squares = PerClass[np.float64]()

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self._floor = floor
        self._squares = np.zeros((0, 0))

    @property
    def options(self) -> dict[str, Any]:
        """Its one argument."""
        return {"floor": self._floor}

    def _score(self, rows: Array) -> Array:
        variances = self._squares / self._counts[:, None] - self._means**2 + self._floor
        gaps = rows[:, None] - self._means
        return np.asarray(-(gaps**2 / variances + np.log(variances)).sum(axis=2))

    def _start_shared(self, width: int) -> None:
        self._squares = np.zeros((0, width))

    def _learn_shared(self, rows: Array, means: Array, codes: NDArray[np.intp], joined: Joined) -> None:
        places, _, sums = group_sums(rows**2, codes)
        self._squares[places] += sums

    def _merge_shared(self, other: DiagonalGaussian, joined: Joined) -> None:
        self._squares[joined.places] += other._squares

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {"squares": self._squares.copy()}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"squares": (classes, width)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._squares = arrays["squares"]


class Nearest(LDA):
    """An LDA with another score, and no statistics of its own."""

    kind: ClassVar[str] = "test_nearest"

    def _score(self, rows: Array) -> Array:
        return np.asarray(-((rows[:, None] - self._means) ** 2).sum(axis=2))


MAKE = [DiagonalGaussian, lambda: DiagonalGaussian(0.1), Nearest]
X = np.random.default_rng(0).normal(size=(40, 6)) + 3 * np.eye(6)[np.arange(40) % 4]
Y = ["abcd"[number % 4] for number in range(40)]


@pytest.fixture(params=MAKE)
def head(request: pytest.FixtureRequest) -> Head:
    made: Head = request.param()
    return made


def test_it_learns_forgets_merges_and_comes_back(head: Head) -> None:
    whole, one, other = (from_state(head.state()) for _ in range(3))
    whole.update(X, Y)
    for row, label in zip(X[:15], Y[:15], strict=True):
        one.update(row[None], [label])
    other.update(X[15:], Y[15:])
    one.merge(other)
    for each in (whole, one):
        each.remove("b")
    again = from_state(one.state())
    assert type(again) is type(head)
    assert again.options == head.options
    assert again.classes == ("a", "c", "d")
    np.testing.assert_allclose(again.scores(X), whole.scores(X), rtol=1e-9)
    assert np.mean(np.array(again.predict(X)) == Y) > 0.6
    assert again.nbytes == sum(array.nbytes for array in again.state().arrays.values())


def test_it_goes_into_a_bundle_and_onto_a_device(
    head: Head, make_bundle: MakeBundle, make_images: MakeImages, tmp_path: Path
) -> None:
    path = make_bundle(head=head)
    assert type(Bundle.open(path).head()) is type(head)
    with EdgeLearner.open(path, state=tmp_path / "device.db", threads=1) as edge:
        for name in ("mug", "pen", "cup"):
            edge.learn(make_images(name, 6), [name] * 6)
        edge.forget("pen")
        before = edge.predict(make_images("cup", seed=2))
    with EdgeLearner.open(path, state=tmp_path / "device.db", threads=1) as edge:
        again = edge.predict(make_images("cup", seed=2))
        assert again.labels == ["cup"] * 4
        np.testing.assert_array_equal(again.scores, before.scores)


def test_it_goes_into_an_aggregate_and_out_in_a_bundle(
    head: Head, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    by_name = {"kind": head.kind, "options": head.options}
    nested = Aggregate([1, 1], [head, LDA()])
    for whole in (
        Aggregate([4, 2], [head, LDA()]),
        Aggregate([4, 2], [LDA(), by_name]),
        Aggregate([4, 2], [by_name, nested]),
    ):
        whole.update(X, Y)
        whole.update(X[:1], ["new"])
        whole.remove("c")
        path = make_bundle(head=whole, overwrite=True)
        again = Bundle.open(path).head()
        assert again.options == whole.options
        np.testing.assert_array_equal(again.scores(X), whole.scores(X))
        for part in whole.heads:
            assert part.classes == ("a", "b", "d", "new")


def test_a_class_without_a_kind_of_its_own_cannot_be_saved(make_bundle: MakeBundle) -> None:
    """It would come back as what it is made from."""

    class Mine(LDA):
        def _score(self, rows: Array) -> Array:
            return super()._score(rows) * 2

    head = Mine()
    head.update(X, Y)
    assert head.predict(X)
    parent = from_state(LDA().state())
    for save in (
        head.state,
        lambda: make_bundle(head=head),
        lambda: Mine.from_state(parent.state()),
        lambda: Aggregate([4, 2], [Mine(), LDA()]).state(),
    ):
        with pytest.raises(ValueError, match=r"Mine has no kind of its own, so its state would come back as"):
            save()


def test_a_kind_is_of_one_class_alone() -> None:
    with pytest.raises(ValueError, match=r"Another and .*\.LDA are both heads of kind 'lda'; .* another"):

        class Another(LDA):
            kind = "lda"

    assert type(from_state(LDA().state())) is LDA


@pytest.mark.parametrize("kind", ["", None, 3])
def test_a_kind_is_a_name(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"the kind of .* is {kind!r}; give a name"):
        type("Nameless", (LDA,), {"kind": kind})


def test_a_class_that_is_defined_again_takes_its_own_place() -> None:
    """As when a module is loaded again, or a notebook's cell is run again."""

    def define() -> type[Head]:
        class Again(LDA):
            kind = "test_again"

        return Again

    first, second = define(), define()
    assert first is not second
    assert type(from_state(second().state())) is second


def test_a_head_that_nobody_has_imported_says_what_to_do(make_bundle: MakeBundle) -> None:
    class Absent(LDA):
        kind = "test_absent"

    path, state = make_bundle(head=Absent()), Absent().state()
    del registry._HEADS["test_absent"]
    says = "unknown head 'test_absent'; give one of .*, or import the module that defines it first"
    with pytest.raises(ValueError, match=says):
        from_state(state)
    with pytest.raises(ValueError, match=says):
        Bundle.open(path)
    with pytest.raises(ValueError, match=says):
        Aggregate([4, 2], [{"kind": "test_absent", "options": {}}, LDA()])


def test_options_that_are_none_are_refused() -> None:
    state = LDA().state()
    for options in ({"depth": 3}, {"shrinkage": None}, None):
        with pytest.raises(ValueError, match="wrong options for head 'lda'"):
            from_state(HeadState("lda", (), options, state.arrays))  # type: ignore[arg-type]


def test_the_owner_of_the_order_is_for_others_too() -> None:
    """Whoever keeps rows for classes beside a head."""
    classes, rows = Classes(), np.zeros((0, 2))
    for names in (["a", "b"], ["c", "a"]):
        places = classes.places(names)
        rows = np.concatenate([rows, np.zeros((len(classes) - len(rows), 2))])
        rows[places] += 1
    rows = np.delete(rows, classes.remove("a"), axis=0)
    assert dict(zip(classes, rows[:, 0].tolist(), strict=True)) == {"b": 1, "c": 1}
