"""Orbax checkpoints: parameters, optimizer state, config and data iterator in one, kept as latest and best.

A run's folder holds

    W/checkpoints/STEP/{params,opt_state,about}   written by Orbax, complete or absent
    W/lists.npy                                   [N] int32, the frozen lists, written once
    W/encodings/STEP/                             the corpus as that checkpoint encodes it, see `store.Store`
    W/encoder/                                    the text encoder before training, if that is the query tower

Arrays are saved in natural shapes and restored as numpy, so that a checkpoint from 8 devices restores on 1.
What evaluation and export need, `params` and `about`, is read without the optimizer's state or a config file.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dvq_jax import files, towers
from dvq_jax.errors import InputError
from dvq_jax.towers import Tower
from dvq_jax.train_step import TrainState
from dvq_jax.types import IndexParams

_FOLDER = 'checkpoints'
_LISTS, _ENCODER = 'lists.npy', 'encoder'


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a checkpoint says about an index: all that evaluation and export need.

    Attributes:
      workdir: the run's folder.
      step: of the checkpoint.
      params: the index, numpy arrays.
      tower: the query tower.
      lists: [N] int32, the frozen lists, memory-mapped; None where documents go to the nearest list.
      config: the training config.
      dataset: path of the training dataset.
      fingerprint: of the corpus that it was trained on.
      metrics: the dev metrics at that step; empty where it was saved because of a preemption.
    """

    workdir: pathlib.Path
    step: int
    params: IndexParams
    tower: Tower
    lists: np.ndarray | None
    config: dict[str, Any]
    dataset: str
    fingerprint: str
    metrics: dict[str, float]


def _judge(metrics: dict[str, float], metric: str) -> float:
    """A checkpoint that was saved in a hurry has no metrics, and is not the best."""
    return metrics.get(metric, float('-inf'))


class _Manager(ocp.CheckpointManager):
    """Does not ask JAX whether to end: that is for `preemption`, which counts who asks."""

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        return False


class Checkpoints:
    """Writes a run's checkpoints.

    Kept are step 0 (the index before training), the latest, and the best by the dev metric.

    Args:
      workdir: the run's folder.
      metric: the dev metric that decides which is best; larger is better.
    """

    def __init__(self, workdir: pathlib.Path, *, metric: str):
        judge = functools.partial(_judge, metric=metric)
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.CustomSteps([0]),
                preservation_policy.LatestN(1),
                preservation_policy.BestN(n=1, get_metric_fn=judge),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            # Without it Orbax does not store the metrics, and a resumed run would not know its best.
            best_fn=judge,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        self._manager = _Manager(files.make_folder(workdir / _FOLDER), options=options)

    def save(self, state: TrainState, *, about: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes a checkpoint of `state.step`; one of that step that exists already is kept as it is.

        Args:
          state: replicated over the devices.
          about: what else the run needs to go on, and readers need to know; JSON.
          metrics: on the dev queries; empty where there was no time to measure.
        """
        host = jax.tree.map(np.asarray, state)
        step = int(host.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(host.params),
                opt_state=ocp.args.PyTreeSave(host.opt_state),
                about=ocp.args.JsonSave({**about, 'metrics': metrics}),
            ),
            metrics=metrics,
        )

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _read(workdir: pathlib.Path, step: int, **items: Any) -> Any:
    """Reads items of a checkpoint."""
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        with ocp.CheckpointManager(workdir / _FOLDER, options=options) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f'{workdir}: checkpoint {step} cannot be read, or training has just replaced it ({reason}); '
            'take another step, or remove its folder.'
        ) from error


def read_about(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """What was saved as `about` at a step, and 'metrics'.

    Args:
      workdir: the run's folder.
      step: of a checkpoint that is there.

    Returns:
      The JSON.

    Raises:
      InputError: the checkpoint is damaged.
    """
    return _read(workdir, step, about=ocp.args.JsonRestore())['about']


def read_state(workdir: pathlib.Path, step: int, like: TrainState) -> TrainState:
    """Reads a state back, to go on training.

    Args:
      workdir: the run's folder.
      step: of a checkpoint that is there.
      like: a state of the right structure; its values are not used.

    Returns:
      The state, arrays on the host.

    Raises:
      InputError: the checkpoint is damaged.
    """

    def as_numpy(tree: Any) -> ocp.args.PyTreeRestore:
        kind = jax.tree.map(lambda _leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return ocp.args.PyTreeRestore(item=tree, restore_args=kind)

    items = _read(workdir, step, params=as_numpy(like.params), opt_state=as_numpy(like.opt_state))
    return TrainState(step=np.asarray(step, np.int32), params=items['params'], opt_state=items['opt_state'])


def digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's numbers, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def write_lists(workdir: pathlib.Path, lists: np.ndarray) -> str:
    """Stores the frozen lists beside the checkpoints, from process 0.

    Args:
      workdir: the run's folder.
      lists: [N] int32.

    Returns:
      The SHA-256 of the lists, for checkpoints to record.
    """
    if jax.process_index() == 0:
        with files.atomic_file(workdir / _LISTS) as aside, open(aside, 'wb') as file:
            np.save(file, lists)
    return digest(lists)


def read_lists(workdir: pathlib.Path, recorded: str) -> np.ndarray:
    """The frozen lists, [N] int32, memory-mapped.

    Args:
      workdir: the run's folder.
      recorded: their `digest`, in a checkpoint.

    Returns:
      The lists.

    Raises:
      InputError: the file is missing, cut short, or not the one that the run was trained with.
    """
    path = workdir / _LISTS
    try:
        lists = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f'{path}: cannot be read ({error}); train again.') from error
    if digest(lists) != recorded:
        raise InputError(f'{path}: not the lists that this run was trained with; train again.')
    return lists


def write_encoder(workdir: pathlib.Path, tower: Tower) -> None:
    """Stores the text encoder that a tower starts from, from process 0: evaluation needs its tokenizer."""
    if jax.process_index() == 0 and not (workdir / _ENCODER).exists():
        from dvq_jax import huggingface

        with files.atomic_folder(workdir / _ENCODER) as aside:
            huggingface.write(aside, towers.encoder(tower))


def available_steps(workdir: pathlib.Path) -> list[int]:
    """The complete checkpoints of a run, ascending; empty where there is none yet."""
    folder = workdir / _FOLDER
    if not folder.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder))


def load(workdir: str | os.PathLike, step: str | int = 'latest') -> Trained:
    """Reads what a checkpoint says about an index; needs neither the config nor the devices of the run.

    Args:
      workdir: the run's folder.
      step: 'latest', 'best' by the dev metric of the run, or a number.

    Returns:
      The trained index and query tower.

    Raises:
      InputError: no checkpoint there, or none of that step.

    Example:
      trained = load('W', 'best')
    """
    workdir = pathlib.Path(workdir).absolute()
    steps = available_steps(workdir)
    if not steps:
        raise InputError(f'{workdir}: holds no checkpoint; train with --workdir={workdir} first.')
    if step == 'best':
        abouts = {one: read_about(workdir, one) for one in steps}
        number = max(steps, key=lambda one: (_judge(abouts[one]['metrics'], abouts[one]['metric']), one))
    else:
        number = steps[-1] if step == 'latest' else _number(step)
    if number not in steps:
        raise InputError(f'{workdir}: has no checkpoint of step {step}; it has {steps}.')
    restored = _read(workdir, number, params=ocp.args.PyTreeRestore(), about=ocp.args.JsonRestore())
    params, notes = restored['params'], restored['about']
    if 'codes' not in notes['config']:
        raise InputError(f'{workdir}: was trained by an earlier version of dvq_jax; train again.')
    args = notes['tower_args']
    if towers.reads_text(notes['tower']):
        args = {**args, 'model': str(workdir / _ENCODER)}
    return Trained(
        workdir=workdir,
        step=number,
        params=IndexParams(**{name: np.asarray(params[name]) for name in IndexParams.__annotations__}),
        tower=Tower(notes['tower'], args, params.get('tower') or {}),
        lists=read_lists(workdir, notes['lists']) if notes['lists'] else None,
        config=notes['config'],
        dataset=notes['dataset'],
        fingerprint=notes['fingerprint'],
        metrics=notes['metrics'],
    )


def _number(step: str | int) -> int:
    try:
        return int(step)
    except ValueError as error:
        raise InputError(f"step is {step!r}; use 'latest', 'best' or a number.") from error
