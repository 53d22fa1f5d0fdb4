"""The contract between the stages: cached features, written once by extraction, import or anyone's
script, read by training.

A store is a head file (index, header) and closed shards (contiguous arrays) beside it;
docs/store.md has the format on one screen. Needs h5py, numpy and pyarrow only.
"""

from mer.pipeline.store.build import build_index
from mer.pipeline.store.head import refuse_twin, shards_of
from mer.pipeline.store.reader import FeatureStore, verify_shards
from mer.pipeline.store.schema import FORMAT_VERSION, Damage, Header, ModalityInfo
from mer.pipeline.store.shard import Shard, ShardWriter

__all__ = [
    "FORMAT_VERSION",
    "Damage",
    "FeatureStore",
    "Header",
    "ModalityInfo",
    "Shard",
    "ShardWriter",
    "build_index",
    "refuse_twin",
    "shards_of",
    "verify_shards",
]
