"""MBAT: structures as sums of vectors bound by orthogonal matrices, and any JSON document as one vector."""

from hesse.vsa.mbat.algebra import Codebook, bundle, encode_phrase, sequence_decode, sequence_encode
from hesse.vsa.mbat.atoms import atom
from hesse.vsa.mbat.binding import OrthogonalBinding
from hesse.vsa.mbat.encoder import Decoded, Explanation, JSONEncoder
from hesse.vsa.mbat.field_weights import learn_field_weights
from hesse.vsa.mbat.incremental import IncrementalEncoder
from hesse.vsa.mbat.index import Hit, JSONIndex
from hesse.vsa.mbat.recipe import parse_json

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
