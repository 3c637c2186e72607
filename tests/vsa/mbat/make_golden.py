"""Write golden.json: run by hand, and only together with a new namespace of the hashes."""

import json
from pathlib import Path

import torch

from hesse.vsa import JSONEncoder

DOCUMENTS = [
    {"name": "Ana", "age": 41, "tags": ["a", "b"], "address": {"zip": None, "ok": True}},
    ["naïve café", -2.5, [], {}, ""],
    "one plain text",
]

if __name__ == "__main__":
    entries = [
        {"document": document, "vector": [round(x, 10) for x in vector]}
        for document in DOCUMENTS
        for vector in [JSONEncoder(64, dtype=torch.float64).encode(document).tolist()]
    ]
    Path(__file__).with_name("golden.json").write_text(json.dumps(entries) + "\n", "utf-8")
