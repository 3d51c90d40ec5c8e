"""A change that is asked for again with the same Idempotency-Key is made once."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from everlearn_runtime import EdgeLearner
from everlearn_runtime.serving.limits import Refused
from everlearn_runtime.serving.once import Once, checked_key, fingerprint

from .conftest import MakeServer, state_of


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


def test_a_lesson_sent_again_is_learned_once(client: Any, learner: EdgeLearner, pens: list[str]) -> None:
    asked = {"images": pens, "label": "pen"}
    first = client.post("/learn", json=asked, headers=key('"one"'))
    before = state_of(learner)
    again = client.post("/learn", json=asked, headers=key("one"))  # quotes are the header's, not the key's
    assert (again.status_code, again.json()) == (200, first.json())
    assert state_of(learner) == before
    assert learner.counts["pen"] == 8
    assert 'everlearn_images_total{call="learn"} 4.0' in client.get("/metrics").text
    other = client.post("/learn", json=asked, headers=key("two"))
    assert other.json()["version"] == 2
    client.post("/learn", json=asked)
    client.post("/learn", json=asked)
    assert learner.counts["pen"] == 20


@pytest.mark.parametrize(
    ("call", "asked"), [("forget", {"label": "pen"}), ("undo", None), ("rollback", {"to": 0})]
)
def test_all_that_changes_something_takes_a_key(
    client: Any, learner: EdgeLearner, pens: list[str], call: str, asked: Any
) -> None:
    for _ in range(2):
        client.post("/learn", json={"images": pens, "label": "pen"})
    first = client.post(f"/{call}", json=asked, headers=key("k"))
    assert first.status_code == 200
    before = state_of(learner)
    assert client.post(f"/{call}", json=asked, headers=key("k")).json() == first.json()
    assert state_of(learner) == before
    assert learner.version == 3


def test_a_key_goes_with_one_request(client: Any, learner: EdgeLearner, pens: list[str]) -> None:
    client.post("/learn", json={"images": pens, "label": "pen"}, headers=key("k"))
    before = state_of(learner)
    for call, asked in (("learn", {"images": pens, "label": "mug"}), ("undo", None)):
        found = client.post(f"/{call}", json=asked, headers=key("k"))
        assert found.status_code == 422
        assert "another request" in found.json()["error"]
    as_a_picture = {"content-type": "image/png", **key("k")}
    assert client.post("/learn?label=pen", content=b"", headers=as_a_picture).status_code == 422
    assert state_of(learner) == before


def test_what_was_refused_may_be_tried_again(client: Any, learner: EdgeLearner, pens: list[str]) -> None:
    assert client.post("/rollback", json={"to": 1}, headers=key("k")).status_code == 400
    client.post("/learn", json={"images": pens, "label": "pen"})
    assert client.post("/rollback", json={"to": 1}, headers=key("k")).json() == {"version": 2, "to": 1}


@pytest.mark.parametrize("wrong", ["", '""', '"a', 'a"b', "a b", "x" * 256, "a\\b", "caf\xe9"])
def test_a_key_that_is_none(client: Any, learner: EdgeLearner, pens: list[str], wrong: str) -> None:
    before = state_of(learner)
    found = client.post(
        "/learn", json={"images": pens, "label": "pen"}, headers={"Idempotency-Key": wrong.encode("latin-1")}
    )
    assert found.status_code == 400
    assert "Idempotency-Key is 1 to 255" in found.json()["error"]
    assert state_of(learner) == before


def test_calls_that_change_nothing_do_not_look_at_it(client: Any, pens: list[str]) -> None:
    for images in (pens, pens[:1]):
        assert client.post("/predict", json={"images": images}, headers=key("k")).status_code == 200


def test_memory_is_bounded() -> None:
    once = Once(keys=3, size=200)

    def ask(name: str, size: int = 1) -> bool:
        """Whether it is done."""
        return once.answer(name, b"", lambda: {"said": "x" * size})[1]

    def refuse() -> dict[str, Any]:
        raise Refused(409, "no")

    assert [ask(name) for name in "abcab"] == [True, True, True, False, False]
    assert ask("d")  # for which the oldest goes
    assert ask("a")
    assert ask("e", 150)
    assert not ask("e")
    assert ask("f", 150)  # both do not fit
    assert not ask("f", 150)
    assert ask("e", 150)
    assert ask("g", 10_000)  # the last one is kept, whatever its size
    assert not ask("g")
    assert ask("e", 150)
    assert once._held == 150 + len(json.dumps({"said": ""}))
    with pytest.raises(Refused):
        once.answer("h", b"", refuse)
    assert ask("h")


def test_fingerprints_keep_their_parts_apart() -> None:
    assert fingerprint(b"a", b"bc") != fingerprint(b"ab", b"c")
    assert checked_key("a") == checked_key('"a"')


def test_twice_at_once_is_once(serve: MakeServer, learner: EdgeLearner, pens: list[str]) -> None:
    from urllib.request import Request, urlopen

    address, found = serve(learner), list[Any]()
    body = json.dumps({"images": pens, "label": "pen"}).encode()

    def ask() -> None:
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        with urlopen(Request(f"{address}/learn", body, headers), timeout=30) as answer:
            found.append(json.load(answer))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 8
    assert (learner.version, learner.counts["pen"]) == (1, 8)


def test_the_description_tells_of_it(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for name in ("learn", "forget", "undo", "rollback"):
        call = paths[f"/{name}"]["post"]
        assert call["parameters"][-1]["name"] == "Idempotency-Key"
        assert "422" in call["responses"]
    assert "422" not in paths["/predict"]["post"]["responses"]
