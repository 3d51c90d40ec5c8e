"""What goes with what: checksums of a bundle's graph and head."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from everlearn_runtime.manifest import FEATURES, HEAD, Manifest


def model_of(manifest: Manifest) -> str:
    """sha256 of what a state goes with: the graph, with its weights wherever they are, and the head."""
    files = {name: sha for name, sha in manifest.files.items() if name.startswith(FEATURES) or name == HEAD}
    return _sha256([sorted(files.items()), manifest.head, manifest.classes])


def graph_of(manifest: Manifest) -> str:
    """sha256 of what deltas that add up have in common: the graph, and the head's kind and options."""
    files = {name: sha for name, sha in manifest.files.items() if name.startswith(FEATURES)}
    return _sha256([sorted(files.items()), manifest.head])


def _sha256(says: list[Any]) -> str:
    return hashlib.sha256(json.dumps(says, sort_keys=True).encode()).hexdigest()
