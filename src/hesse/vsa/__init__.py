"""Vector symbolic architectures: structured records as single vectors."""

from hesse.vsa.mbat import (
    Codebook,
    Decoded,
    Explanation,
    Hit,
    IncrementalEncoder,
    JSONEncoder,
    JSONIndex,
    OrthogonalBinding,
    atom,
    bundle,
    encode_phrase,
    learn_field_weights,
    parse_json,
    sequence_decode,
    sequence_encode,
)

__all__ = [
    "Codebook",
    "Decoded",
    "Explanation",
    "Hit",
    "IncrementalEncoder",
    "JSONEncoder",
    "JSONIndex",
    "OrthogonalBinding",
    "atom",
    "bundle",
    "encode_phrase",
    "learn_field_weights",
    "parse_json",
    "sequence_decode",
    "sequence_encode",
]
