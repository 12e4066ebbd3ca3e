r"""Builds a text collection with TFDS, and writes it as the files that the other commands read.

python -m dvq_jax.cli.collection --name=msmarco_passage --out=TEXTS
python -m dvq_jax.cli.collection --name=pydoc_search --source=ROOT --out=TEXTS
python -m dvq_jax.cli.collection --name=from_files --collection=mine --data_dir=DATA \
    --texts=documents:docs.tsv,train:train_queries.tsv --qrels=train:train_qrels.txt

TEXTS gets docs.tsv, and for each split of queries SPLIT_queries.tsv, and SPLIT_qrels.txt and
SPLIT_answers.tsv where it has such. What is downloaded and built once is found again in --data_dir.
"""

import pathlib
import time

from absl import flags

from dvq_jax import files
from dvq_jax.cli import run
from dvq_jax.datasets import collection
from dvq_jax.datasets.from_files import FromFiles
from dvq_jax.datasets.msmarco_passage import MsmarcoPassage
from dvq_jax.datasets.natural_questions_dpr import NaturalQuestionsDpr
from dvq_jax.datasets.pydoc_search import PydocSearch
from dvq_jax.errors import InputError

_BUILDERS = {
    'msmarco_passage': MsmarcoPassage,
    'natural_questions_dpr': NaturalQuestionsDpr,
    'pydoc_search': PydocSearch,
    'from_files': FromFiles,
}

_NAME = flags.DEFINE_enum('name', None, list(_BUILDERS), 'Which.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The folder to write texts to; it must not exist.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, "Where TFDS keeps data; else TFDS's own default.")
_MANUAL_DIR = flags.DEFINE_string(
    'manual_dir', None, 'A folder with the published files, under their names, instead of downloads.'
)
_SOURCE = flags.DEFINE_multi_string(
    'source', [], "Of pydoc_search: folders of Python sources; else the interpreter's standard library."
)
_COLLECTION = flags.DEFINE_string('collection', None, 'Of from_files: what to call it.')
_TEXTS = flags.DEFINE_list('texts', [], "Of from_files: SPLIT:PATH of .tsv's; one split is `documents`.")
_QRELS = flags.DEFINE_list('qrels', [], 'Of from_files: SPLIT:PATH of TREC qrels.')
_EMBEDDINGS = flags.DEFINE_list('embeddings', [], 'Of from_files: SPLIT:PATH of embeddings, of every split.')


def _by_split(flag: flags.FlagHolder) -> dict[str, str]:
    paths = {}
    for split, _, path in (value.partition(':') for value in flag.value):
        if not split.isidentifier() or not path or split in paths:
            raise InputError(
                f'--{flag.name}={",".join(flag.value)}: is not SPLIT:PATH, each split once; write train:FILE.'
            )
        paths[split] = path
    return paths


def _builder() -> collection.Collection:
    of_files = {'collection': _COLLECTION, 'texts': _TEXTS, 'qrels': _QRELS, 'embeddings': _EMBEDDINGS}
    owners = {'source': ['pydoc_search'], 'manual_dir': ['msmarco_passage', 'natural_questions_dpr']}
    owners |= {name: ['from_files'] for name in of_files}
    for flag in (_SOURCE, _MANUAL_DIR, *of_files.values()):
        if flag.value and _NAME.value not in (those := owners[flag.name]):
            raise InputError(
                f'--{flag.name} is of {" and ".join(those)}, not of {_NAME.value}; leave it out.'
            )
    given = {}
    if _NAME.value == 'pydoc_search':
        given = {'roots': _SOURCE.value}
    elif _NAME.value == 'from_files':
        if not _COLLECTION.value or not _COLLECTION.value.isidentifier():
            raise InputError(f'--collection={_COLLECTION.value}: give a word to keep the collection under.')
        given = {name: _by_split(flag) for name, flag in of_files.items() if name != 'collection'}
        given['collection'] = _COLLECTION.value
    return _BUILDERS[_NAME.value](data_dir=_DATA_DIR.value, **given)


def main() -> dict:
    """Builds and writes; says what was written."""
    begin = time.monotonic()
    if _OUT.value:
        if _NAME.value == 'from_files':
            raise InputError('--out is of collections that are not from such files; leave it out.')
        files.make_folder(files.check_new(_OUT.value).parent)
    if _MANUAL_DIR.value and not pathlib.Path(_MANUAL_DIR.value).is_dir():
        raise InputError(f'--manual_dir={_MANUAL_DIR.value}: is not a folder; give one, or leave it out.')
    builder = _builder()
    collection.prepare(builder, manual_dir=_MANUAL_DIR.value)
    if _OUT.value:
        with files.atomic_folder(_OUT.value) as folder:
            collection.write_texts(builder, folder)
    return {
        'dataset': str(builder.data_path),
        'examples': {split: info.num_examples for split, info in builder.info.splits.items()},
        'texts': _OUT.value,
        'seconds': round(time.monotonic() - begin, 1),
    }


if __name__ == '__main__':
    run(main)
