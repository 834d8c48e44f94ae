"""What an object bucket's stream holds of its objects' descriptions, and what other clients may put there."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from typing import Any

from mono_sync import ObjectBucket
from tests.storage.helpers import raw_objects


def subject_of(objects: ObjectBucket, name: str) -> str:
    return f"$O.{objects.name}.M.{urlsafe_b64encode(name.encode()).decode()}"


def stored(objects: ObjectBucket, name: str) -> dict[str, Any]:
    """Return what the newest description says."""
    answer = raw_objects(objects).api("STREAM.MSG.GET.{stream}", {"last_by_subj": subject_of(objects, name)})
    meta: dict[str, Any] = json.loads(b64decode(answer["message"]["data"]))
    return meta


def headers_of(objects: ObjectBucket, name: str) -> str:
    """Return the headers of the message that holds it."""
    answer = raw_objects(objects).api("STREAM.MSG.GET.{stream}", {"last_by_subj": subject_of(objects, name)})
    return b64decode(answer["message"]["hdrs"]).decode()


def store(objects: ObjectBucket, name: str, meta: Any, headers: dict[str, str] | None = None) -> None:
    """Store a description, or any bytes, as another client would do."""
    data = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    raw_objects(objects).put(subject_of(objects, name), data, {"Nats-Rollup": "sub", **(headers or {})})
