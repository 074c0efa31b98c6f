"""A vocabulary with its sentinels inside, as T5X's mc4.250000.100extra and mT5's are."""

from sentencepiece import sentencepiece_model_pb2

from pemt_jax.tasks.vocabulary import PACKAGED


def with_sentinels_inside() -> bytes:
    """The packaged vocabulary with 100 sentinels as its last pieces."""
    model = sentencepiece_model_pb2.ModelProto.FromString(PACKAGED.read_bytes())
    for i in reversed(range(100)):
        model.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=4)
    return model.SerializeToString(deterministic=True)
