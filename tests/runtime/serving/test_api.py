"""The JSON API: what every call does, and that what is refused changes nothing."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("starlette", reason="the extra serve is not installed")

from everlearn_runtime import EdgeLearner, Prototypes, StateError
from everlearn_runtime.serving.calls import FIELDS

from .conftest import MakeClient, png, state_of, text

MakeImages = Callable[..., NDArray[np.uint8]]


def test_a_session(client: Any, learner: EdgeLearner, make_images: MakeImages) -> None:
    cups, more = make_images("cup", 5), make_images("cup", 3, seed=1)

    learned = client.post("/learn", json={"images": text(cups), "label": "cup"})
    assert learned.status_code == 200
    assert learned.json() == {"version": 1, "learned": [{"label": "cup", "samples": 5}], "suspects": []}
    assert learner.counts == {"mug": 4, "pen": 4, "cup": 5}

    found = client.post("/predict", json={"images": text(more), "top": 2}).json()
    here = learner.predict(more)
    assert found["calibrated"] is False
    assert [one["label"] for one in found["predictions"]] == here.labels == ["cup"] * 3
    for said, row in zip(found["predictions"], here.top(2), strict=True):
        assert said["known"] is True
        assert [(one["label"], one["probability"]) for one in said["top"]] == row

    status = client.get("/status").json()
    assert status["version"] == 1
    assert status["classes"][-1] == {"label": "cup", "samples": 5}
    assert status["input"] == {"height": 8, "width": 8}

    assert client.post("/forget", json={"label": "mug"}).json()["version"] == 2
    assert "mug" not in learner.counts
    assert client.post("/undo").json() == {"version": 3, "to": 1}
    assert learner.counts["mug"] == 4
    assert client.post("/rollback", json={"to": 0}).json() == {"version": 4, "to": 0}
    assert learner.counts == {"mug": 4, "pen": 4}

    versions = client.get("/history").json()["versions"]
    assert [(one["version"], one["kind"], one["to"]) for one in versions] == [
        (0, "start", None),
        (1, "learn", None),
        (2, "forget", None),
        (3, "rollback", 1),
        (4, "rollback", 0),
    ]
    assert versions[1]["classes"] == [{"label": "cup", "samples": 5}]
    assert [one["version"] for one in client.get("/history?last=2").json()["versions"]] == [3, 4]


def test_labels_for_each_image(client: Any, learner: EdgeLearner, make_images: MakeImages) -> None:
    images = text(np.concatenate([make_images("cup", 2), make_images("jar", 1)]))
    learned = client.post("/learn", json={"images": images, "labels": ["cup", "cup", "jar"]}).json()
    assert learned["learned"] == [{"label": "cup", "samples": 2}, {"label": "jar", "samples": 1}]
    assert learner.version == 1


@pytest.mark.parametrize(
    "label", ["12", "Tasse à café", "杯子", "👨‍👩‍👧", "می‌خواهم", "<b>x</b>", "a/../b", "null"]
)
def test_a_picture_as_it_is(client: Any, learner: EdgeLearner, make_images: MakeImages, label: str) -> None:
    picture, kind = png(make_images("cup", 1)[0]), {"content-type": "image/png"}
    learned = client.post("/learn", content=picture, headers=kind, params={"label": label})
    assert learned.json()["learned"] == [{"label": label, "samples": 1}]
    found = client.post("/predict?top=1", content=picture, headers=kind).json()
    assert found["predictions"][0]["top"][0]["label"] == label == learner.classes[-1]


def test_unknown_and_suspects_come_through(
    client: Any, learner: EdgeLearner, make_images: MakeImages
) -> None:
    for seed in range(30):
        for label in ("mug", "pen"):
            client.post("/learn", json={"images": text(make_images(label, 4, seed=seed + 1)), "label": label})
    odd = make_images("something else", 1)
    found = client.post("/predict", json={"images": text(odd)}).json()
    assert found["calibrated"] is True
    assert found["predictions"][0]["known"] is bool(learner.predict(odd).known[0]) is False
    wrong = client.post("/learn", json={"images": text(make_images("mug", 1)), "label": "pen"}).json()
    assert wrong["suspects"] == [{"image": 0, "looks": "mug", "reason": "label"}]
    assert "everlearn_unknown_total 1.0" in client.get("/metrics").text


def header_only(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


GOOD = as_text(png(np.zeros((8, 8, 3), np.uint8)))
CUT = as_text(png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:6000])
BAD: list[tuple[str, object, int, str]] = [
    ("learn", [], 400, "a JSON list; give an object"),
    ("learn", None, 400, "a JSON null; give an object"),
    ("learn", {"label": "cup"}, 400, "images is missing"),
    ("learn", {"images": GOOD, "label": "cup"}, 400, "images is a JSON text; give a list"),
    ("learn", {"images": [], "label": "cup"}, 400, "no image"),
    ("learn", {"images": [GOOD]}, 400, "either label"),
    ("learn", {"images": [GOOD], "label": "cup", "labels": ["cup"]}, 400, "either label"),
    ("learn", {"images": [GOOD], "labels": ["cup", "pen"]}, 400, "2 labels for 1 images"),
    ("learn", {"images": [GOOD], "labels": [3]}, 400, "label 3 is not a non-empty str"),
    ("learn", {"images": [GOOD], "label": 3}, 400, "label is a JSON number; give text"),
    ("learn", {"images": [GOOD], "label": ""}, 400, "not a non-empty str"),
    ("learn", {"images": [GOOD], "label": " \t"}, 400, "not a non-empty str"),
    ("learn", {"images": [GOOD], "label": "a\nb"}, 400, "cannot be seen"),
    ("learn", {"images": [GOOD], "label": "gum\u202egnp"}, 400, "cannot be seen"),
    ("learn", {"images": [GOOD], "label": "\ud800"}, 400, "not valid Unicode"),
    ("learn", {"images": [GOOD], "label": "x" * 101}, 413, "a label of 101 characters; give at most 100"),
    ("learn", {"images": [GOOD], "label": "cup", "lr": 1}, 400, "unknown field 'lr'"),
    ("learn", {"images": [GOOD], "label": "cup", "guard": "0.1"}, 400, "guard is a JSON text; give a number"),
    ("learn", {"images": [GOOD], "label": "cup", "guard": True}, 400, "guard is a JSON boolean"),
    ("learn", {"images": [GOOD], "label": "cup", "guard": 0.1}, 400, "guard on a bundle without canaries"),
    ("learn", {"images": [GOOD] * 65, "label": "cup"}, 413, "65 images; give at most 64"),
    ("learn", {"images": ["%%%"], "label": "cup"}, 400, "image 0 is no base64"),
    ("learn", {"images": [GOOD, None], "label": "cup"}, 400, "image 1 is no base64"),
    ("learn", {"images": [as_text(b"no picture")], "label": "cup"}, 400, "image 0 is no readable JPEG"),
    ("learn", {"images": [GOOD, CUT], "label": "cup"}, 400, "image 1: not a readable image"),
    ("learn", {"images": [as_text(header_only(5000, 5000))], "label": "cup"}, 413, "5000 x 5000 pixels"),
    ("learn", {"images": [as_text(header_only(50000, 50000))], "label": "cup"}, 413, "too large"),
    ("learn", {"images": [as_text(b"%!PS-Adobe-3.0 EPSF-3.0\n")], "label": "cup"}, 400, "no readable JPEG"),
    ("predict", {"images": [GOOD], "top": 0}, 400, "top is 0"),
    ("predict", {"images": [GOOD], "top": 1.5}, 400, "top is a JSON number; give a whole number"),
    ("predict", {"images": [GOOD], "top": True}, 400, "top is a JSON boolean"),
    ("forget", {}, 400, "label is missing"),
    ("forget", {"label": "no such"}, 400, "no class 'no such' to forget"),
    ("forget", {"label": "mug", "purge": 1}, 400, "purge is a JSON number; give true or false"),
    ("undo", {"to": 3}, 400, "unknown field 'to'; this call takes no fields"),
    ("undo", {}, 400, "nothing"),
    ("rollback", {"to": 7}, 400, "7"),
    ("rollback", {"to": -1}, 400, "-1"),
    ("rollback", {"to": "0"}, 400, "to is a JSON text"),
    ("rollback", {"to": 10**14}, 400, "100000000000000"),
]


@pytest.mark.parametrize(("call", "data", "status", "says"), BAD, ids=range(len(BAD)))
def test_bad_input_changes_nothing(
    client: Any, learner: EdgeLearner, call: str, data: object, status: int, says: str
) -> None:
    before = state_of(learner)
    answer = client.post(f"/{call}", content=json.dumps(data), headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert state_of(learner) == before


@pytest.mark.parametrize("label", ["x" * 300, "two\nlines"])
def test_classes_that_were_learned_before_keep_their_names(
    client: Any, learner: EdgeLearner, make_images: MakeImages, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("everlearn_runtime.edge.check_names", lambda labels, known: labels)
        learner.learn(make_images("cup"), [label] * 4)
    learned = client.post("/learn", json={"images": text(make_images("cup", 2)), "label": label})
    assert learned.json()["learned"] == [{"label": label, "samples": 2}]
    assert client.post("/forget", json={"label": label}).status_code == 200
    refused = client.post("/learn", json={"images": text(make_images("cup", 2)), "label": label})
    assert refused.status_code in (400, 413)
    assert label not in learner.counts


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "PCX"])
def test_only_formats_of_cameras_and_browsers(client: Any, learner: EdgeLearner, form: str) -> None:
    file, before = io.BytesIO(), state_of(learner)
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, form)
    answer = client.post("/learn", json={"images": [as_text(file.getvalue())], "label": "red"})
    if form in ("JPEG", "PNG", "WEBP", "BMP"):
        assert answer.status_code == 200
    else:  # Pillow would read it
        assert answer.json() == {"error": "image 0 is no readable JPEG, PNG, WEBP, BMP file"}
        assert state_of(learner) == before


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        ("application/json", b"{", 400, "no JSON in UTF-8"),
        ("application/json", b'{"label": "\xff"}', 400, "no JSON in UTF-8"),
        ("application/json", b"[" * 60000, 400, "nested too deeply"),
        ("application/json", b'{"label": NaN}', 400, "NaN is no JSON"),
        ("application/json", b'{"label": ' + b"9" * 5000 + b"}", 400, "too long"),
        ("text/plain", b'{"label": "mug"}', 415, "send application/json"),
        ("", b'{"label": "mug"}', 415, "send application/json"),
        ("image/png", b"x", 415, "send application/json"),
        ("application/x-www-form-urlencoded", b"label=mug", 415, "send application/json"),
        ("application/json", b" " * 70000, 413, "70000 bytes"),
    ],
)
def test_bodies_that_are_no_request(
    client: Any, learner: EdgeLearner, kind: str, body: bytes, status: int, says: str
) -> None:
    before = state_of(learner)
    answer = client.post("/forget", content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert state_of(learner) == before


@pytest.mark.parametrize(
    "query", ["top=x", "top=", "top=NaN", "top=[1]", "nosuch=1", "images=1", "top=%ff", "top=true"]
)
def test_queries_that_are_no_request(client: Any, make_images: MakeImages, query: str) -> None:
    picture = png(make_images("pen", 1)[0])
    answer = client.post(f"/predict?{query}", content=picture, headers={"content-type": "image/png"})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_body_beyond_the_limit(make_client: MakeClient, learner: EdgeLearner, pens: list[str]) -> None:
    client, before = make_client(limits={"body": 2000}), state_of(learner)
    kind = {"content-type": "application/json"}
    body = json.dumps({"images": pens * 3, "label": "pen"}).encode()
    assert len(body) > 2000

    def pieces() -> Any:  # sent without a Content-Length
        yield from (body[start : start + 500] for start in range(0, len(body), 500))

    assert client.post("/learn", content=body, headers=kind).status_code == 413
    assert client.post("/learn", content=pieces(), headers=kind).status_code == 413
    compressed = client.post("/learn", content=b"x", headers={**kind, "content-encoding": "gzip"})
    assert compressed.status_code == 415
    assert state_of(learner) == before


def test_what_the_state_does_not_allow_is_a_conflict(
    client: Any, learner: EdgeLearner, monkeypatch: pytest.MonkeyPatch, pens: list[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(learner, "learn", full)
    answer = client.post("/learn", json={"images": pens, "label": "pen"})
    assert (answer.status_code, answer.json()) == (409, {"error": "the disk is full"})


def test_a_mistake_of_ours_tells_nothing_but_is_logged(
    client: Any, learner: EdgeLearner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learner, "undo", lambda: 1 / 0)
    answer = client.post("/undo")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_nothing_is_known(make_client: MakeClient, learner: EdgeLearner, make_images: MakeImages) -> None:
    client = make_client()
    for label in ("mug", "pen"):
        client.post("/forget", json={"label": label})
    assert client.get("/status").json()["classes"] == []
    answer = client.post("/predict", json={"images": text(make_images("pen", 1))})
    assert (answer.status_code, answer.json()) == (400, {"error": "no class is known yet; learn some first"})


def test_metrics(client: Any, make_images: MakeImages) -> None:
    client.post("/predict", json={"images": text(make_images("pen", 3))})
    client.post("/learn", json={"images": text(make_images("cup", 2)), "label": "cup"})
    client.post("/forget", json={"label": "no such"})
    client.get("/nowhere/at/all")
    client.get("/")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'everlearn_requests_total{call="predict",status="200"} 1.0',
        'everlearn_requests_total{call="forget",status="400"} 1.0',
        'everlearn_requests_total{call="other",status="404"} 1.0',
        'everlearn_requests_total{call="page",status="200"} 1.0',
        'everlearn_images_total{call="predict"} 3.0',
        'everlearn_images_total{call="learn"} 2.0',
        'everlearn_request_seconds_count{call="learn"} 1.0',
        "everlearn_classes 3.0",
        "everlearn_samples 10.0",
        "everlearn_version 1.0",
        "everlearn_drifted 0.0",
    ):
        assert line in lines
    assert not any("cup" in line or "nowhere" in line for line in lines)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(GOOD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({name for fields in FIELDS.values() for name in fields})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["predict", "learn", "forget", "rollback", "undo"]),
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(NAMES), JSONS, max_size=4).map(lambda data: json.dumps(data).encode()),
    st.sampled_from(["application/json", "image/png", "image/jpeg", "text/plain", ""]),
)
def test_whatever_comes_is_answered_or_refused(
    client: Any, learner: EdgeLearner, call: str, body: bytes, kind: str
) -> None:
    before = state_of(learner)
    answer = client.post(f"/{call}", content=body, headers={"content-type": kind} if kind else {})
    said = answer.json()
    assert answer.status_code in (200, 400, 409, 413, 415), said
    if answer.status_code != 200:
        assert list(said) == ["error"]
        assert state_of(learner) == before
    elif call != "predict":
        assert said["version"] == before[0] + 1


def test_a_guard_refuses_as_a_conflict(
    tmp_path: Path, make_bundle: Callable[..., Path], make_images: MakeImages
) -> None:
    from starlette.testclient import TestClient

    from everlearn_runtime import OnnxRuntime
    from everlearn_runtime.guard import Canaries
    from everlearn_runtime.serving.app import App

    bundle, images = make_bundle(), np.concatenate([make_images("mug"), make_images("pen")])
    features = OnnxRuntime(bundle / "features.onnx").run(images)
    head = Prototypes()
    labels = ["mug"] * 4 + ["pen"] * 4
    head.update(features, labels)
    guarded = make_bundle("guarded", head=head, canaries=Canaries(features, tuple(labels)))
    with EdgeLearner.open(guarded, state=tmp_path / "guarded.db", threads=1) as learner:
        app = App(learner)
        client = TestClient(app, base_url="http://localhost")
        swapped = {"images": text(make_images("mug", 40, seed=5)), "label": "pen", "guard": 0.1}
        before = state_of(learner)
        answer = client.post("/learn", json=swapped)
        assert answer.status_code == 409, answer.json()
        assert state_of(learner) == before
        app.close()
