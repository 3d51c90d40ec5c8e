"""From a request's bytes to the object that it asks with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from everlearn_runtime.serving.calls import FIELDS, Field
from everlearn_runtime.serving.limits import Refused
from everlearn_runtime.serving.pictures import FORMATS

LONGEST_NUMBER = 15  # digits: what a double, JSON's number elsewhere, holds exactly


def data_of(name: str, kind: str, query: str, body: bytes) -> object:
    """What a call is given.

    Args:
        name: The call, one of ``FIELDS``.
        kind: The Content-Type, as it came.
        query: What stands behind the question mark.
        body: What was sent.

    Returns:
        What the JSON says; or of a picture's bytes and of a GET, the query's members.

    Raises:
        Refused: 400 for what cannot be read, 415 for another type than JSON or, where a picture will do, a
            picture.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind in FORMATS and "images" in FIELDS[name]:
        return {**_members(query, FIELDS[name]), "images": [body]}
    if not body:
        return _members(query, FIELDS[name])
    if kind != "application/json":
        also = f" or {', '.join(FORMATS)}" if "images" in FIELDS[name] else ""
        raise Refused(415, f"the body is {kind[:40]!r}; send application/json{also}")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_int=_whole)
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is no JSON in UTF-8 ({error})") from None


def _members(query: str, fields: Mapping[str, Field]) -> dict[str, Any]:
    """A query's members, as the types that their fields have."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=10)
    except ValueError:
        raise Refused(400, "the query cannot be read; write it as name=value&name=value in UTF-8") from None
    found: dict[str, Any] = {}
    for name, text in pairs:
        kind = fields[name].kind if name in fields else str
        if kind is list:
            raise Refused(400, f"{name} does not fit into a query; send it in JSON")
        found[name] = text if kind is str else _value(name, text)
    return found


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_whole)
    except (ValueError, RecursionError):
        raise Refused(400, f"{name}={text[:40]!r} in the query is no number, true or false") from None


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"the number {text[:20]}... is too long")
    return int(text)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
