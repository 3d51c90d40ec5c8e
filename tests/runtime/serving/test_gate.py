"""Who gets in: hosts, origins, tokens, rates; and what every answer carries."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from everlearn_runtime import EdgeLearner
from everlearn_runtime.serving.app import FILES, METHODS
from everlearn_runtime.serving.gate import Gate
from everlearn_runtime.serving.limits import REMEMBERED, Limits, Rate, Refused, Room

from .conftest import MakeClient, state_of

TOKEN = "a-token-of-some-length"
CALLS = [*(f"/{name}" for name in METHODS), "/metrics"]


def method(path: str) -> str:
    return METHODS.get(path[1:], "GET")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer \xe9"},
        {"cookie": f"token={TOKEN}"},
    ],
    ids=range(8),
)
def test_without_the_token_nothing_is_done(
    make_client: MakeClient, learner: EdgeLearner, path: str, sent: dict[str, str]
) -> None:
    client, before = make_client(token=TOKEN), state_of(learner)
    headers = {name: value.encode("latin-1") for name, value in sent.items()}
    answer = client.request(method(path), path, headers=headers, json={"label": "mug"})
    assert (answer.status_code, list(answer.json())) == (401, ["error"])
    assert answer.headers["www-authenticate"] == "Bearer"
    assert state_of(learner) == before


def test_with_the_token(make_client: MakeClient) -> None:
    client = make_client(token=TOKEN)
    for name in ("Bearer", "bearer"):
        assert client.get("/status", headers={"authorization": f"{name} {TOKEN}"}).status_code == 200
    for path in (*FILES, "/openapi.json"):  # the page asks for it, so it comes without
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("token", ["", "short", "with a blank in between", "täglich-ein-neues-wort"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Gate(token)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST.:1", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("cam.example:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("user@localhost", 403),
        ("localhost:8000:1", 403),
        ("localhost/", 403),
        ("", 403),
    ],
)
def test_only_under_its_own_names(make_client: MakeClient, host: str, status: int) -> None:
    client = make_client(names=("Cam.Example",))
    for path in ("/status", "/"):
        assert client.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),
        ("http://localhost:9000", 403),
        ("http://localhost", 403),
        ("http://127.0.0.1:8000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_only_from_its_own_page(
    make_client: MakeClient, learner: EdgeLearner, origin: str, status: int
) -> None:
    client, before = make_client(), state_of(learner)
    answer = client.post("/forget", json={"label": "mug"}, headers={"origin": origin})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert state_of(learner) == before


def test_a_browser_that_asks_first_is_told_no(client: Any) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/learn", headers=asked)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/calls.py",
        "/calls.py",
        "/./page.js/../calls.py",
        "//etc/passwd",
        "/page.js/",
        "/page.js%00",
        "/page.js;x",
        "/static/page.js",
        "/predict/",
        "/PREDICT",
        "/__init__.py",
        "/\\..\\calls.py",
    ],
)
def test_nothing_else_is_served(client: Any, path: str) -> None:
    answer = client.get(f"http://localhost:8000{path}")
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("path", [*CALLS, *FILES])
def test_other_methods(client: Any, learner: EdgeLearner, path: str) -> None:
    before = state_of(learner)
    for wrong in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {method(path)}:
        answer = client.request(wrong, path)
        assert answer.status_code == 405
        assert method(path) in answer.headers["allow"]
    assert state_of(learner) == before


def test_every_answer_carries_what_keeps_a_browser_strict(client: Any) -> None:
    for path in ("/", "/page.js", "/status", "/nowhere", "/openapi.json", "/metrics"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_the_page_needs_nothing_that_the_policy_forbids(client: Any) -> None:
    for path in FILES:
        content = client.get(path).text
        assert content
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "onclick=",
            "style=",
        ):
            assert forbidden not in content, (path, forbidden)
        if path != "/icon.svg":  # whose namespace looks like an address
            assert "http://" not in content
            assert "https://" not in content


def test_a_rate(make_client: MakeClient, learner: EdgeLearner) -> None:
    client = make_client(limits={"rate": 0.5, "burst": 3})
    assert [client.post("/undo").status_code for _ in range(3)] == [400] * 3
    before = state_of(learner)
    answer = client.post("/forget", json={"label": "mug"})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert state_of(learner) == before


def test_a_bucket_fills_again() -> None:
    now = 0.0
    rate = Rate(2, 4, lambda: now)
    for _ in range(4):
        rate.take("10.0.0.1")
    with pytest.raises(Refused) as refused:
        rate.take("10.0.0.1")
    assert (refused.value.status, refused.value.wait) == (429, 0.5)
    rate.take("10.0.0.2")
    now = 0.5
    rate.take("10.0.0.1")
    now = 1000.0
    for _ in range(4):
        rate.take("10.0.0.1")
    with pytest.raises(Refused):
        rate.take("10.0.0.1")


def test_addresses_of_one_client_share_a_bucket() -> None:
    rate = Rate(1, 1, lambda: 0.0)
    rate.take("2001:db8::1")
    rate.take("2001:db8:0:1::1")
    for same in ("2001:db8::ffff:1", "2001:db8:0:1:2::%eth0"):
        with pytest.raises(Refused):
            rate.take(same)
    rate.take("10.0.0.1")
    with pytest.raises(Refused):
        rate.take("::ffff:10.0.0.1")


def test_memory_of_addresses_is_bounded() -> None:
    rate = Rate(1, 1, lambda: 0.0)
    for number in range(2 * REMEMBERED):
        rate.take(f"10.0.{number // 256}.{number % 256}")
    assert len(rate._buckets) == REMEMBERED


def test_requests_share_the_memory(make_client: MakeClient, learner: EdgeLearner, pens: list[str]) -> None:
    room = Room(100)
    with room.share() as take, room.share() as other:
        take(60)
        with pytest.raises(Refused) as refused:
            other(41)
        assert (refused.value.status, refused.value.wait) == (503, 1.0)
        other(40)
    with room.share() as take:
        take(100)
    client, before = make_client(limits={"memory": 100}), state_of(learner)
    answer = client.post("/learn", json={"images": pens, "label": "pen"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert state_of(learner) == before


@pytest.mark.parametrize("name", ["body", "pixels", "images", "label", "rate", "burst", "memory", "seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        Limits(**{name: value})


def test_the_description_is_of_what_is_there(client: Any, make_client: MakeClient) -> None:
    said = client.get("/openapi.json").json()
    assert said["openapi"].startswith("3.1")
    assert set(said["paths"]) == set(CALLS)
    for path, methods in said["paths"].items():
        assert list(methods) == [method(path).lower()]
    assert "security" not in said
    assert make_client(token=TOKEN).get("/openapi.json").json()["security"] == [{"token": []}]
    names = set(said["components"]["schemas"])
    used = {text.split('"')[0] for text in json.dumps(said).split("#/components/schemas/")[1:]}
    assert used == names


def test_answers_are_as_described(client: Any, pens: list[str]) -> None:
    said = client.get("/openapi.json").json()
    asked = [
        ("/learn", {"images": pens, "label": "pen"}),
        ("/predict", {"images": pens}),
        ("/forget", {"label": "mug"}),
        ("/undo", {}),
        ("/rollback", {"to": 1}),
        ("/history", None),
        ("/status", None),
    ]
    for path, data in asked:
        answer = client.get(path) if data is None else client.post(path, json=data)
        described = said["paths"][path][method(path).lower()]["responses"][str(answer.status_code)]
        matches(answer.json(), described["content"]["application/json"]["schema"], said)
    wrong = client.post("/rollback", json={})
    described = said["paths"]["/rollback"]["post"]["responses"]["400"]
    matches(wrong.json(), described["content"]["application/json"]["schema"], said)


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def matches(data: Any, schema: dict[str, Any], said: dict[str, Any]) -> None:
    """As much of JSON Schema as the description uses for answers."""
    if "$ref" in schema:
        return matches(data, said["components"]["schemas"][schema["$ref"].rpartition("/")[2]], said)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if data is None:
        assert "null" in kinds
        return None
    assert isinstance(data, TYPES[kinds[0]]), (data, schema)  # type: ignore[arg-type]
    if kinds[0] == "object":
        assert set(data) == set(schema["properties"]) == set(schema["required"])
        for name, inner in schema["properties"].items():
            matches(data[name], inner, said)
    elif kinds[0] == "array":
        for one in data:
            matches(one, schema["items"], said)
    return None
