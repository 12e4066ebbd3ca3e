r"""Mines or encodes on Apache Beam's workers; the usual commands find it done and go on.

python -m dvq_jax.cli.beam --work=mine --corpus=docs.npy --queries=train_queries.npy --topk=200 \
    --out=DATASET --pipeline_options=runner=FlinkRunner,flink_master=HOST:PORT    # then prepare
python -m dvq_jax.cli.beam --work=encode --workdir=W --step=best \
    --pipeline_options=runner=FlinkRunner,flink_master=HOST:PORT    # then evaluate, export or report
"""

from absl import flags

from dvq_jax.cli import run
from dvq_jax.errors import InputError

_WORK = flags.DEFINE_enum(
    'work', None, ['mine', 'encode'], "`prepare`'s mining, or the encoding of a checkpoint.", required=True
)
_CORPUS = flags.DEFINE_string('corpus', None, 'Document embeddings, as `prepare` takes them.')
_QUERIES = flags.DEFINE_string('queries', None, 'Training query embeddings, as `prepare` takes them.')
_TOPK = flags.DEFINE_integer('topk', 200, 'As `prepare` is to be given.', lower_bound=1)
_OUT = flags.DEFINE_string('out', None, 'The dataset that `prepare` is to create.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that train wrote.')
_STEP = flags.DEFINE_string('step', 'latest', "Which checkpoint: 'latest', 'best' or a step.")
_OPTIONS = flags.DEFINE_list(
    'pipeline_options', [], "Beam's own, as name=value; without any, Beam's local runner does the work."
)
_FLAGS = {'mine': (_CORPUS, _QUERIES, _TOPK, _OUT), 'encode': (_WORKDIR, _STEP)}


def _check_flags() -> None:
    for work, needed in _FLAGS.items():
        for flag in needed:
            if work == _WORK.value and flag.value is None:
                raise InputError(f'--work={work} needs --{flag.name}; give it too.')
            if work != _WORK.value and flag.present:
                raise InputError(f'--{flag.name} is for --work={work}; leave it out.')


def main() -> dict:
    """Does what is missing; says how much that was."""
    _check_flags()
    from dvq_jax import beam

    options = [f'--{option.lstrip("-")}' for option in _OPTIONS.value]
    if _WORK.value == 'encode':
        return beam.encode_pipeline(workdir=_WORKDIR.value, step=_STEP.value, options=options)
    return beam.mine_pipeline(
        corpus=_CORPUS.value, queries=_QUERIES.value, topk=_TOPK.value, out=_OUT.value, options=options
    )


if __name__ == '__main__':
    run(main)
