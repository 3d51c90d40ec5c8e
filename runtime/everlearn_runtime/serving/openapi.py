"""The API's description, OpenAPI 3.1."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from everlearn_runtime.serving.calls import LONGEST_HISTORY, VERSIONS
from everlearn_runtime.serving.limits import Limits
from everlearn_runtime.serving.once import KEYS, LONGEST
from everlearn_runtime.serving.pictures import FORMATS

JSON = dict[str, Any]

WHOLE: JSON = {"type": "integer"}
TEXT: JSON = {"type": "string"}
FLAG: JSON = {"type": "boolean"}
CLASSES: JSON = {"type": "array", "items": {"$ref": "#/components/schemas/Class"}}
MAYBE_TEXT: JSON = {"type": ["string", "null"]}
MAYBE_WHOLE: JSON = {"type": ["integer", "null"]}
SAYS = {
    400: "The request is wrong.",
    401: "The token is missing or wrong.",
    403: "Asked by another page, or under a name that the device does not have.",
    405: "Another method is for this.",
    408: "The request took too long to arrive.",
    409: "The state, or a guard, does not allow it; nothing has changed.",
    413: "Too much at once.",
    415: "Another type of body is wanted.",
    422: "The Idempotency-Key came with another request before.",
    429: "Too many requests a second; Retry-After says how long to wait.",
    501: "Something is not installed on the device.",
    503: "Busy; Retry-After says how long to wait.",
}
KEY: JSON = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {**TEXT, "minLength": 1, "maxLength": LONGEST},
    "description": "The same request with the same key is answered as it was the first time, and changes "
    f"nothing again; of the last {KEYS} keys, as long as the server runs. What was refused may be tried "
    "again.",
}


def describe(limits: Limits, token: bool) -> JSON:
    """The description of the API as it stands here.

    Args:
        limits: What calls may ask for.
        token: Whether they must carry a token.

    Returns:
        A JSON object.
    """
    images: JSON = {
        "type": "array",
        "items": {**TEXT, "contentEncoding": "base64"},
        "minItems": 1,
        "maxItems": limits.images,
        "description": f"Picture files ({', '.join(FORMATS.values())}) in base64.",
    }
    # A known class may have a longer name, from the workstation.
    label: JSON = {
        **TEXT,
        "minLength": 1,
        "description": f"A class; a new one of up to {limits.label} signs.",
    }
    top: JSON = {**WHOLE, "minimum": 1, "maximum": 1000, "default": 3}
    guard: JSON = {
        "type": ["number", "null"],
        "description": "Refuse what would lower the accuracy on the bundle's canaries by more than this.",
    }
    to: JSON = {**WHOLE, "minimum": 0, "description": "A version's number, see /history."}
    last: JSON = {**WHOLE, "minimum": 1, "maximum": LONGEST_HISTORY, "default": VERSIONS}
    labels: JSON = {"type": "array", "items": label, "description": "One for each image, in place of label."}
    paths = {
        "/predict": _post(
            "predict",
            "What pictures show, and how sure that is.",
            "Predicted",
            _object({"images": images, "top": top}, ["images"]),
            picture=[_query("top", top)],
            changes=False,
        ),
        "/learn": _post(
            "learn",
            "Learn pictures of one class or several, old and new; one version, which can be taken back.",
            "Learned",
            _object({"images": images, "label": label, "labels": labels, "guard": guard}, ["images"]),
            picture=[_query("label", label), _query("guard", {"type": "number"})],
        ),
        "/forget": _post(
            "forget",
            "Drop a class; with purge, leave nothing of it in the state, which ends the history.",
            "Forgotten",
            _object({"label": label, "purge": {**FLAG, "default": False}}, ["label"]),
        ),
        "/undo": _post("undo", "Take back the last change that has not been taken back.", "Back", None),
        "/rollback": _post("rollback", "Go back to an earlier version.", "Back", _object({"to": to}, ["to"])),
        "/history": _get(
            "history",
            "The versions that can be gone back to, oldest first.",
            "History",
            [_query("last", last)],
        ),
        "/status": _get("status", "What is known.", "Status", []),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Figures for Prometheus.",
                "responses": {
                    "200": {
                        "description": "Prometheus' text format.",
                        "content": {"text/plain": {"schema": TEXT}},
                    },
                    **_errors(401, 403, 429),
                },
            }
        },
    }
    description: JSON = {
        "openapi": "3.1.0",
        "info": {
            "title": "everlearn-device",
            "version": version("everlearn"),
            "description": "Predict, learn, forget and go back. What is refused changes nothing.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if token:
        description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"token": []}]
    return description


def _schemas() -> JSON:
    share: JSON = {"type": "number", "minimum": 0, "maximum": 1}
    best = _object({"label": TEXT, "probability": share})
    prediction = _object(
        {
            "label": TEXT,
            "known": {**FLAG, "description": "Whether it looks like a known class; true if not calibrated."},
            "top": {"type": "array", "items": best},
        }
    )
    doubt = _object({"image": WHOLE, "looks": TEXT, "reason": {**TEXT, "description": "label, or unknown."}})
    version = _object(
        {
            "version": WHOLE,
            "time": {**TEXT, "format": "date-time"},
            "kind": {**TEXT, "description": "start, learn, forget, purge, rollback or migrate."},
            "classes": CLASSES,
            "to": MAYBE_WHOLE,
            "form": MAYBE_TEXT,
        }
    )
    status = {
        "version": WHOLE,
        "classes": CLASSES,
        "drifted": {**FLAG, "description": "Whether pictures of late are unlike those of known classes."},
        "head": TEXT,
        "backend": TEXT,
        "input": _object({"height": WHOLE, "width": WHOLE}),
        "limits": _object(
            {"body": WHOLE, "pixels": WHOLE, "images": WHOLE, "label": WHOLE, "rate": {"type": "number"}}
        ),
    }
    return {
        "Error": _object({"error": {**TEXT, "description": "One sentence for people."}}),
        "Class": _object({"label": TEXT, "samples": WHOLE}),
        "Predicted": _object(
            {
                "calibrated": {**FLAG, "description": "Whether the probabilities keep what they say."},
                "predictions": {"type": "array", "items": prediction},
            }
        ),
        "Learned": _object(
            {"version": WHOLE, "learned": CLASSES, "suspects": {"type": "array", "items": doubt}}
        ),
        "Forgotten": _object({"version": WHOLE, "form": MAYBE_TEXT}),
        "Back": _object({"version": WHOLE, "to": MAYBE_WHOLE}),
        "History": _object({"versions": {"type": "array", "items": version}}),
        "Status": _object(status),
    }


def _object(members: JSON, required: list[str] | None = None) -> JSON:
    return {
        "type": "object",
        "properties": members,
        "required": list(members) if required is None else required,
        "additionalProperties": False,
    }


def _query(name: str, schema: JSON) -> JSON:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _post(
    name: str,
    says: str,
    answer: str,
    body: JSON | None,
    picture: list[JSON] | None = None,
    changes: bool = True,
) -> JSON:
    """A call that takes JSON, or one picture as it is with the rest in the query."""
    content: JSON = {} if body is None else {"application/json": {"schema": body}}
    call: JSON = {"operationId": name, "summary": says}
    if picture is not None:
        content |= {kind: {} for kind in FORMATS}
        call["parameters"] = picture
    if changes:
        call["parameters"] = [*call.get("parameters", ()), KEY]
    if content:
        call["requestBody"] = {"required": True, "content": content}
    call["responses"] = {
        **_answered(answer),
        **_errors(*(status for status in SAYS if changes or status != 422)),
    }
    return {"post": call}


def _get(name: str, says: str, answer: str, query: list[JSON]) -> JSON:
    responses = {**_answered(answer), **_errors(400, 401, 403, 405, 409, 429, 503)}
    return {"get": {"operationId": name, "summary": says, "parameters": query, "responses": responses}}


def _answered(schema: str) -> JSON:
    return {"200": {"description": "Done.", "content": _content(schema)}}


def _errors(*statuses: int) -> JSON:
    return {str(status): {"description": SAYS[status], "content": _content("Error")} for status in statuses}


def _content(schema: str) -> JSON:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
