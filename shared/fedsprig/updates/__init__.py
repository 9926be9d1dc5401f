"""Updates: the change of an adapter, and whole states, as few bytes with a stated error bound."""

from fedsprig.updates.codecs import CODECS, Codec, get_codec
from fedsprig.updates.delta import decode_update, encode_update
from fedsprig.updates.state import decode_state, encode_state

__all__ = [
    "CODECS",
    "Codec",
    "decode_state",
    "decode_update",
    "encode_state",
    "encode_update",
    "get_codec",
]
