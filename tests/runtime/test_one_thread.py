"""What is computed beside a graph stays in the thread that asks: BLAS's own would take the graph's cores."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn_runtime.products import LARGE, PIECE, inverse, product

SIZES = st.integers(1, 700)


@settings(deadline=None)
@given(rows=SIZES, inner=SIZES, columns=SIZES, left_vector=st.booleans(), right_vector=st.booleans())
def test_a_product_in_pieces_is_the_product(
    rows: int, inner: int, columns: int, left_vector: bool, right_vector: bool
) -> None:
    random = np.random.default_rng(rows + inner + columns)
    left = random.normal(size=inner if left_vector else (rows, inner))
    right = random.normal(size=inner if right_vector else (columns, inner)).T
    whole = left @ right
    found = product(left, right)
    assert np.shape(found) == np.shape(whole)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12 * inner)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_nothing_times_something(rows: int) -> None:
    assert product(np.ones((rows, 0)), np.ones((0, 7))).shape == (rows, 7)
    assert product(np.ones((rows, 7)), np.ones((7, 0))).shape == (rows, 0)
    assert 1 < PIECE < LARGE


BESIDE = """
import json, os, sys, time
import numpy as np
from everlearn_runtime.heads.registry import make

def others():
    me, total = str(os.getpid()), 0
    for task in os.listdir("/proc/self/task"):
        if task != me:
            total += int(open(f"/proc/self/task/{task}/schedstat").read().split()[0])
    return total / 1e6

def cost(call):
    before = others()
    for _ in range(5):
        call()
        time.sleep(0.02)
    return others() - before

random = np.random.default_rng(0)
threaded = random.normal(size=(700, 700))
print(cost(lambda: threaded @ threaded))
time.sleep(1)
head = make(sys.argv[1], json.loads(sys.argv[2]))
names = [f"class {number % 100}" for number in range(400)]
head.update(random.normal(size=(400, 384)), names)
rows = random.normal(size=(16, 384))
def learn():
    head.scores(rows), head.look(rows), head.update(rows, names[:16])
learn(), learn()
time.sleep(1)
print(cost(learn))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's figures of each thread")
@pytest.mark.parametrize(
    ("kind", "options"),
    [("prototypes", {}), ("lda", {}), ("whitened_cosine", {}), ("ridge", {"regularisation": 0.01})],
)
def test_a_head_that_follows_its_images_wakes_no_other_thread(kind: str, options: dict[str, float]) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, kind, json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    threaded, head = map(float, done.stdout.split())
    if threaded < 1:
        pytest.skip("numpy's BLAS has one thread here")
    assert head < 1  # milliseconds, in five rounds; one product that is shared takes some 10


@settings(deadline=None)
@given(width=st.integers(1, 300), ridge=st.floats(1e-4, 1), seed=st.integers(0, 99))
def test_an_inverse_in_pieces_is_the_inverse(width: int, ridge: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(width // 2 + 1, width))
    matrix = rows.T @ rows / width + ridge * np.eye(width)
    found = inverse(matrix)
    assert np.array_equal(matrix, matrix.T)
    np.testing.assert_allclose(found @ matrix, np.eye(width), atol=1e-12 * np.linalg.cond(matrix))


def test_a_matrix_that_rounding_has_made_indefinite() -> None:
    matrix = np.diag(np.linspace(1, 2, 130))
    matrix[100, 100] = -1e-9
    np.testing.assert_allclose(inverse(matrix), np.linalg.inv(matrix))
    with pytest.raises(np.linalg.LinAlgError):
        inverse(np.zeros((70, 70)))
