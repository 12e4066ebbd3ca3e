"""What a run starts from, in this order:

1. The workdir holds a checkpoint: go on from its latest, with the optimizer's state and the data iterator.
   The config must be the one that the run began with; only its length and cadence may differ (a schedule that
   decays does so towards the new length).
2. `config.resume_from` names another run's workdir: go on from that run's latest in the same way.
3. `config.init_from` names another run's workdir: take its index and query tower, and begin at step 0.
4. Else the index is initialised from the corpus.

The frozen lists are written once, and the first checkpoint is the index before training. Until then what is
finished is kept, stage by stage and of a pass over the corpus block by block, under `start/`: an interrupted
start goes on from there, and comes to the same result.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import numpy as np

from dvq_jax import checkpoint, evaluate, files, initialize, routing, towers
from dvq_jax.corpus import assign_corpus
from dvq_jax.errors import InputError
from dvq_jax.run import Run, blank_state, flatten, initial_tower, tower_of
from dvq_jax.stages import Stages
from dvq_jax.train_step import TrainState, init_state
from dvq_jax.types import IndexParams

_MAY_DIFFER = (
    'data.dataset',
    'data.placement',
    'data.threads',
    'resume_from',
    'train.passes',
    'train.profile',
    'train.steps',
    'train.log_every',
    'train.checkpoint_every',
)


def _check_same_run(run: Run, saved: dict[str, Any], workdir: pathlib.Path) -> None:
    new, old = flatten(run.config.to_dict()), flatten(saved['config'])
    for key in sorted(set(new) | set(old)):
        if key not in _MAY_DIFFER and new.get(key) != old.get(key):
            raise InputError(
                f'{workdir}: was trained with {key}={old.get(key)!r}, the config says {new.get(key)!r}; '
                'use another --workdir, or the config that the run began with.'
            )
    if (saved['fingerprint'], saved['examples']) != (run.dataset.fingerprint, run.dataset.digest):
        raise InputError(
            f'{workdir}: was trained on another dataset than {run.dataset.folder} is now; use another '
            '--workdir, or that dataset.'
        )


def _check_same_shapes(index: IndexParams, blank: TrainState, source: str) -> None:
    for name, ours in blank.params.items():
        theirs = getattr(index, name, ours)
        if name != 'tower' and theirs.shape != ours.shape:
            raise InputError(
                f'init_from: {source} has {name} of shape {list(theirs.shape)}, the config wants '
                f'{list(ours.shape)}; use the same index settings, or start anew.'
            )


def stages_of(run: Run, index: IndexParams | None = None) -> Stages:
    """What an interrupted start by the same dataset and config, but for `_MAY_DIFFER`, has finished.

    And by the same index, if it is another run's.
    """
    config = {key: value for key, value in flatten(run.config.to_dict()).items() if key not in _MAY_DIFFER}
    given = {} if index is None else {name: checkpoint.digest(array) for name, array in vars(index).items()}
    of = sorted(config.items()), run.dataset.fingerprint, run.dataset.digest, given
    return Stages(run.workdir / 'start', repr(of))


def _nearest_lists(index: IndexParams, corpus: np.ndarray, kept: Stages) -> np.ndarray:
    made = kept('lists', lambda where: {'lists': assign_corpus(index, corpus, parts=where('lists'))})
    return made['lists']


def _first_index(run: Run) -> tuple[IndexParams, np.ndarray | None]:
    """k-means, lists that queries reach, (O)PQ; and the lists, where they are frozen."""
    config, corpus, kept = run.config, run.dataset.corpus, stages_of(run)
    settings, lists = config.initialize.to_dict(), None
    draws = {'seed': config.seed, 'sample': settings['sample'], 'seeding': settings['seeding']}
    coarse = functools.partial(
        initialize.coarse,
        corpus,
        lists=config.index.lists,
        iterations=settings['coarse_iterations'],
        spherical=settings['spherical'],
        **draws,
    )
    centroids = kept('centroids', lambda _: {'centroids': coarse()})['centroids']
    if run.routed:
        centroids, lists = routing.learn(
            centroids,
            corpus,
            run.demand,
            rounds=config.routing.rounds,
            passes=config.routing.passes,
            nprobe=config.eval.nprobe,
            copies=config.index.copies,
            seed=config.seed,
            kept=kept,
        )
    fine = functools.partial(
        initialize.fine,
        corpus,
        centroids,
        decided=lists,
        codebooks=config.index.codebooks,
        codewords=config.index.codewords,
        rotation=config.index.rotation,
        opq_iterations=settings['opq_iterations'],
        pq_iterations=settings['pq_iterations'],
        **draws,
    )
    index = IndexParams(**kept('index', lambda _: vars(fine())))
    if lists is None and not run.dynamic:
        lists = _nearest_lists(index, corpus, kept)
    return index, lists


def _first_state(run: Run, example: checkpoint.Trained | None) -> tuple[TrainState, np.ndarray | None]:
    """Rules 3 and 4: the state at step 0, of another run's index or of a new one, and the frozen lists."""
    config, corpus = run.config, run.dataset.corpus
    tower_params, lists = initial_tower(run), None
    if example is None:
        index, lists = _first_index(run)
    else:
        index = example.params
        if example.fingerprint == run.dataset.fingerprint:
            lists = example.lists
        ours, theirs = tower_of(config.to_dict()), example.tower
        if (theirs.name, towers.settings(theirs.args)) == (ours.name, towers.settings(ours.args)):
            tower_params = example.tower.params
    if run.dynamic:
        lists = None
    elif lists is None:
        lists = _nearest_lists(index, corpus, stages_of(run, index))
    if lists is not None and len(lists) != config.index.copies * len(corpus):
        raise InputError(
            f'init_from: {config.init_from} has no {config.index.copies} lists for each document of '
            f'{run.dataset.folder}; use its index.copies and corpus, or start anew.'
        )
    return init_state(index, tower_params, run.optimizer), lists


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
      state: arrays on the host.
      lists: [N] int32, the frozen lists; None where they are re-assigned.
      about: what every checkpoint says about the run.
      iterator: the data iterator's state; None at the beginning.
      history: the dev metrics of earlier steps of this workdir.
      resumed: whether this workdir holds a checkpoint of that step.
    """

    state: TrainState
    lists: np.ndarray | None
    about: dict[str, Any]
    iterator: dict[str, Any] | None = None
    history: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    resumed: bool = False


def _about(run: Run, lists_digest: str | None) -> dict[str, Any]:
    config = run.config.to_dict()
    tower = tower_of(config)
    return {
        'config': config,
        'dataset': str(run.dataset.folder.absolute()),
        'fingerprint': run.dataset.fingerprint,
        'examples': run.dataset.digest,
        'lists': lists_digest,
        'metric': run.metric,
        'tower': tower.name,
        'tower_args': tower.args,
    }


def starting_point(run: Run) -> Start:
    """Follows the four rules, see the module's text.

    Args:
      run: from `open_run`.

    Returns:
      What to go on from.

    Raises:
      InputError: the config is not that of the run in the workdir, or another run named does not fit.
      Preempted: SIGTERM has ended it early; what is finished is kept.
    """
    blank, source = blank_state(run), run.workdir
    steps = checkpoint.available_steps(source)
    resumed = bool(steps)
    if not steps and run.config.resume_from:
        source = pathlib.Path(run.config.resume_from).absolute()
        steps = checkpoint.available_steps(source)
        if not steps:
            raise InputError(f'resume_from: {source} holds no checkpoint; give the workdir of a run.')
    saved = example = None
    if steps:
        saved = checkpoint.read_about(source, steps[-1])
        _check_same_run(run, saved, source)
    elif run.config.init_from:
        example = checkpoint.load(run.config.init_from)
        _check_same_shapes(example.params, blank, run.config.init_from)
    # Nothing is touched before this: a refused config must not harm the run that is there.
    files.make_folder(run.workdir)
    (run.workdir / evaluate.DONE).unlink(missing_ok=True)
    tower = tower_of(run.config.to_dict())
    if saved is None:
        if towers.reads_text(tower.name):
            from dvq_jax import embed

            embed.compare(towers.encoder(tower), run.dataset.dev)
            checkpoint.write_encoder(run.workdir, tower)
        state, lists = _first_state(run, example)
        digest = None if lists is None else checkpoint.write_lists(run.workdir, lists)
        return Start(state=state, lists=lists, about=_about(run, digest))
    print(f'going on from step {steps[-1]} of {source}', file=sys.stderr, flush=True)
    lists = checkpoint.read_lists(source, saved['lists']) if saved['lists'] else None
    if not resumed and lists is not None:
        checkpoint.write_lists(run.workdir, lists)
    if not resumed and towers.reads_text(tower.name):
        checkpoint.write_encoder(run.workdir, tower)
    return Start(
        state=checkpoint.read_state(source, steps[-1], blank),
        lists=lists,
        about=_about(run, saved['lists']),
        iterator=saved['iterator'],
        history=saved['history'] if resumed else {},
        resumed=resumed,
    )
