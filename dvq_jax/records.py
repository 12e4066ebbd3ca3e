"""Splits of TFDS records, written as a stream and in order, without TensorFlow.

TFDS's own writers hold a split in memory, need TensorFlow where it does not fit, and order a record's fields
anew in each process; what is written here is the same bytes each time.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

FORMAT = 'array_record'
_SHARD = 100_000  # examples a file


def write(
    template: tfds.core.ShardedFileTemplate,
    features: tfds.features.FeaturesDict,
    examples: Iterable[Mapping[str, Any]],
) -> tfds.core.SplitInfo:
    """Writes a split.

    Args:
      template: names its files, of `FORMAT`.
      features: of an example.
      examples: in the order to keep; one is held at a time.

    Returns:
      What TFDS knows of the split, to go into the dataset's metadata.
    """
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    lengths, size, writer = [], 0, None
    # How many files there will be, and so their names, is known at the end.
    aside = template.data_dir / f'{template.split}.'
    for count, example in enumerate(examples):
        if count % _SHARD == 0:
            if writer is not None:
                writer.close()
            # A group of one: a record is read without its neighbours.
            writer = ArrayRecordWriter(f'{aside}{len(lengths)}', 'group_size:1')
            lengths.append(0)
        proto = serializer.get_tf_example(features.encode_example(example))
        record = proto.SerializeToString(deterministic=True)
        writer.write(record)
        lengths[-1] += 1
        size += len(record)
    if writer is not None:
        writer.close()
    for number in range(len(lengths)):
        path = template.sharded_filepath(shard_index=number, num_shards=len(lengths))
        os.replace(f'{aside}{number}', path)
    return tfds.core.SplitInfo(template.split, lengths, size, template)
