"""Runs through the command line, as a user does: devices, processes, kill and resume, bad input."""

import json
import signal
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from dvq_jax import checkpoint, encode, evaluate
from dvq_jax.errors import InputError
from dvq_jax.prepare import prepare
from tests.runs import ROOT, arrays, curve, difference, finish, run, start, start_two, wait_until


@pytest.fixture(scope='module')
def one_device(collection, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('one')
    result = finish(start(collection, workdir))
    assert result['step'] == 20
    return workdir


@pytest.fixture(scope='module')
def eight_devices(collection, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('eight')
    finish(start(collection, workdir, devices=8))
    return workdir


def test_two_devices_give_the_parameters_of_one(collection, one_device, tmp_path):
    finish(start(collection, tmp_path / 'W', devices=2))
    assert difference(arrays(tmp_path / 'W'), arrays(one_device)) < 1e-4
    assert difference(arrays(one_device), arrays(one_device, 0)) > 1e-3  # they did move


def test_eight_devices_give_the_parameters_of_one(one_device, eight_devices):
    assert difference(arrays(eight_devices), arrays(one_device)) < 1e-4


def test_two_processes_give_the_parameters_of_one(collection, one_device, tmp_path):
    results = [finish(process) for process in start_two(collection, tmp_path / 'W')]
    assert {result['step'] for result in results} == {20}
    assert difference(arrays(tmp_path / 'W'), arrays(one_device)) < 1e-4


def test_two_processes_where_queries_have_documents_of_their_own(collection, tmp_path):
    """All that a query has may be in one list: its gradient is then rounding, and Adam makes a step of it."""
    own = {'candidates': 'gt+top20:4'}
    processes = [start(collection, tmp_path / 'one', **own), *start_two(collection, tmp_path / 'two', **own)]
    assert [finish(process)['step'] for process in processes] == [20, 20, 20]
    ours, theirs = (curve(tmp_path / name, 5) for name in ('two', 'one'))
    assert ours == pytest.approx(theirs, rel=1e-5) and len(ours) == 4
    codebooks = [arrays(tmp_path / name)['codebooks'] for name in ('two', 'one')]
    np.testing.assert_allclose(*codebooks, rtol=0, atol=1e-4)
    assert np.abs(codebooks[0] - arrays(tmp_path / 'one', 0)['codebooks']).max() > 1e-3


def test_two_preempted_processes_go_on_as_one(collection, tmp_path):
    """SIGTERM to one in the start, to both in the loop; one process with two devices takes the rest."""
    settings = {f'optimizer.schedules.{name}': 'constant' for name in ('centroids', 'codebooks', 'tower')}
    settings |= {'optimizer.warmup': 0, 'train.checkpoint_every': 5000, 'train.log_every': 20}
    settings['train.steps'] = 5000  # more than there is time for
    processes = start_two(collection, tmp_path / 'W', **settings)
    wait_until(lambda: list((tmp_path / 'W/start').glob('centroids.*')), processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [finish(process)['preempted'] for process in processes] == [0, 0]
    assert (tmp_path / 'W/start').exists() and not checkpoint.available_steps(tmp_path / 'W')
    processes = start_two(collection, tmp_path / 'W', **settings)
    written = tmp_path / 'W' / 'metrics.jsonl'
    wait_until(lambda: written.exists() and len(written.read_text().splitlines()) > 3, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    reached = {finish(process)['preempted'] for process in processes}
    assert len(reached) == 1 and 20 < min(reached) < 5000
    assert checkpoint.available_steps(tmp_path / 'W')[-1] == min(reached)
    assert not (tmp_path / 'W' / evaluate.DONE).exists()
    settings['train.steps'] = steps = min(reached) // 20 * 20 + 100
    assert finish(start(collection, tmp_path / 'W', devices=2, **settings))['step'] == steps
    finish(start(collection, tmp_path / 'whole', **settings))
    ours, whole = curve(tmp_path / 'W', 20), curve(tmp_path / 'whole', 20)
    assert list(ours) == list(range(20, steps + 1, 20))
    np.testing.assert_allclose(list(ours.values()), [whole[step] for step in ours], rtol=1e-4)


def test_a_checkpoint_of_eight_devices_goes_on_on_one(collection, one_device, eight_devices, tmp_path):
    process = start(collection, tmp_path / 'W', **{'resume_from': str(eight_devices), 'train.steps': 30})
    assert finish(process)['step'] == 30
    longer = start(collection, tmp_path / 'one', **{'resume_from': str(one_device), 'train.steps': 30})
    finish(longer)
    assert difference(arrays(tmp_path / 'W'), arrays(tmp_path / 'one')) < 1e-4


def test_killed_and_run_again_ends_with_the_same_parameters(collection, tmp_path):
    """The whole run once, and once killed with SIGKILL after a checkpoint: same bits."""
    settings = {
        'train.steps': 60, 'train.checkpoint_every': 10, 'optimizer.rates.rotation': 1e-4,
        'tower.name': 'mlp', 'tower.mlp.hidden': 64,
    }  # fmt: skip
    finish(start(collection, tmp_path / 'whole', **settings))
    process = start(collection, tmp_path / 'killed', **settings)
    wait_until(lambda: checkpoint.available_steps(tmp_path / 'killed')[1:], [process])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = checkpoint.available_steps(tmp_path / 'killed')[-1]
    assert 0 < reached < 60
    finish(start(collection, tmp_path / 'killed', **settings))
    whole, killed = arrays(tmp_path / 'whole'), arrays(tmp_path / 'killed')
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name], err_msg=name)
    logs = [
        [(line['step'], line.get('loss')) for line in map(json.loads, path.read_text().splitlines())]
        for path in (tmp_path / 'whole/metrics.jsonl', tmp_path / 'killed/metrics.jsonl')
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ('changes', 'extra', 'message'),
    [
        ({'index.codebooks': 5}, (), 'codebooks is 5'),
        ({'loss.nme': 'kl'}, (), "error: a --config flag is wrong: 'nme' Did you mean"),
        ({'index.lists': 'many'}, (), 'many'),
        ({}, ('--config=configs/nothing.py',), 'nothing.py'),
        ({}, ('--process_id=1',), 'give all three'),
        ({}, ('more',), "unexpected argument 'more'"),
    ],
)
def test_command_line_refuses_in_one_sentence(collection, tmp_path, changes, extra, message):
    process = start(collection, tmp_path / 'W', extra=extra, **changes)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ''
    assert err.startswith('error: ') and err.count('\n') == 1 and message in err
    assert not (tmp_path / 'W').exists()


def test_a_config_that_is_not_there_is_named_also_without_overrides(tmp_path):
    command = [
        sys.executable,
        '-m',
        'dvq_jax.cli.train',
        '--config=configs/nothing.py',
        f'--workdir={tmp_path}/W',
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith('error: --config') and done.stderr.count('\n') == 1


def test_training_improves_the_index(collection, small_config, tmp_path):
    """For the queries that it sees: what it does for others, 60 dev queries of a toy cannot tell."""
    changes = {'routing__rounds': 0, 'codes__queries': 0, 'candidates': 'top50:16+ib'}
    changes |= {'data__batch_size': 64, 'optimizer__rates__tower': 1e-3}
    result = run(small_config, tmp_path, train__steps=400, train__checkpoint_every=200, **changes)
    assert result['metric'] == 'teacher@10' and result['step'] == 400
    reached = []
    for step in (0, 400):
        trained, dataset = evaluate.open_trained(str(tmp_path), step)
        queries = evaluate.read_queries(collection['queries'], query_ids=None, qrels=None, dataset=dataset)
        found = evaluate.evaluate_trained(trained, dataset, queries, nprobe=[4, 16])['nprobe']
        reached.append([values['teacher@10'] for values in found.values()])
    assert (np.subtract(reached[1], reached[0]) > 0.015).all()
    assert checkpoint.available_steps(tmp_path)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert losses[-1] < losses[0]
    logged = {'examples_per_second', 'data_wait', 'codewords_used', 'list_imbalance', 'grad_norm/centroids'}
    assert logged <= set(lines[1])
    assert any((tmp_path / 'tensorboard').iterdir())
    assert json.loads((tmp_path / 'done.json').read_text())['step'] == 400


def test_a_profile_of_ten_steps_is_left_behind(small_config, tmp_path):
    run(small_config, tmp_path, train__profile=5)
    assert [path.name for path in (tmp_path / 'profile').rglob('*.xplane.pb')]


def test_the_encodings_of_checkpoints_are_kept_with_them(small_config, tmp_path, monkeypatch):
    run(small_config, tmp_path, train__steps=30)
    kept = checkpoint.available_steps(tmp_path)
    assert {int(path.name) for path in (tmp_path / 'encodings').iterdir()} == set(kept) < {0, 10, 20, 30}
    monkeypatch.setattr(encode.Encoder, '__call__', None)  # nothing is encoded again
    codes = [evaluate.encode_trained(*evaluate.open_trained(str(tmp_path), step)).codes for step in kept]
    assert (codes[0] != codes[-1]).any()


def test_best_and_latest_and_first_are_kept(small_config, tmp_path):
    run(small_config, tmp_path, train__steps=50, train__checkpoint_every=10, eval__metric='RR@10')
    done = json.loads((tmp_path / 'done.json').read_text())
    assert set(checkpoint.available_steps(tmp_path)) == {0, 50, done['best_step']}
    assert checkpoint.load(tmp_path, 'best').step == done['best_step']
    assert checkpoint.load(tmp_path, 0).metrics['RR@10'] == done['first']['RR@10']


def test_resumed_runs_remember_their_best(small_config, tmp_path):
    """Kept after three sessions is what one session keeps."""
    constant = {f'optimizer__schedules__{name}': 'constant' for name in ('centroids', 'codebooks', 'tower')}
    constant['optimizer__warmup'] = 0.0  # else a share of each session's steps
    for steps in (20, 40, 60):
        result = run(
            small_config, tmp_path / 'three', train__steps=steps, train__checkpoint_every=10, **constant
        )
    once = run(small_config, tmp_path / 'one')
    kept = set(checkpoint.available_steps(tmp_path / 'three'))
    assert kept == {0, 60, result['best_step']} == set(checkpoint.available_steps(tmp_path / 'one'))
    assert result['best'] == once['best'] == checkpoint.load(tmp_path / 'three', 'best').metrics


def test_dataset_prepared_anew_is_refused(collection, small_config, tmp_path):

    run(small_config, tmp_path / 'W', train__steps=0)
    paths = {key: collection[key] for key in ('corpus', 'corpus_ids', 'queries', 'query_ids', 'qrels')}
    prepare(**paths, topk=60, dev_queries=20, out=tmp_path / 'dataset')
    with pytest.raises(InputError, match='was trained on another dataset'):
        run(small_config, tmp_path / 'W', data__dataset=str(tmp_path / 'dataset'))


def test_labels_are_asked_for_where_they_are_needed(collection, small_config, tmp_path):

    paths = {key: collection[key] for key in ('corpus', 'queries')}
    prepare(**paths, topk=50, dev_queries=20, out=tmp_path / 'dataset')
    for changes in ({'candidates': 'gt+ib'}, {'loss__name': 'listnet+contrastive'}):
        with pytest.raises(InputError, match='no training query has a relevant document'):
            run(small_config.copy_and_resolve_references(), tmp_path / 'W',
                data__dataset=str(tmp_path / 'dataset'), **changes)  # fmt: skip


def test_another_run_can_be_the_start(small_config, tmp_path):
    run(small_config, tmp_path / 'first')
    run(small_config, tmp_path / 'second', init_from=str(tmp_path / 'first'), candidates='gt+ib')
    first, second = arrays(tmp_path / 'first'), arrays(tmp_path / 'second', 0)
    assert difference(second, first) == 0.0


def test_run_without_labels_uses_the_teacher(collection, small_config, tmp_path):

    paths = {key: collection[key] for key in ('corpus', 'queries')}
    prepare(**paths, topk=50, dev_queries=20, out=tmp_path / 'dataset')
    result = run(small_config, tmp_path / 'W', data__dataset=str(tmp_path / 'dataset'))
    assert result['best']['teacher@10'] >= result['first']['teacher@10'] and 'RR@10' not in result['last']
    with pytest.raises(InputError, match=r"eval.metric is 'RR@10'.* have no labels"):
        run(small_config, tmp_path / 'V', eval__metric='RR@10')


def test_non_finite_loss_stops_with_the_queries(small_config, tmp_path):
    with pytest.raises(InputError, match=r'is (nan|inf) at step \d+, for queries q\d+.*another --workdir'):
        run(small_config, tmp_path, loss__name='mse', optimizer__rates__codebooks=1e30)
    assert checkpoint.available_steps(tmp_path) == [0]
    assert 'at step' in json.loads((tmp_path / 'done.json').read_text())['error']
    assert list(evaluate.follow(str(tmp_path), poll=0.01)) == [0]  # does not wait for a run that failed


def test_missing_checkpoints_are_named(one_device, tmp_path):
    with pytest.raises(InputError, match='holds no checkpoint'):
        checkpoint.load(tmp_path)
    with pytest.raises(InputError, match=r'has no checkpoint of step 7; it has \[0'):
        checkpoint.load(one_device, 7)
    with pytest.raises(InputError, match="step is 'first'"):
        checkpoint.load(one_device, 'first')


def test_tampered_lists_are_refused(small_config, tmp_path):
    run(small_config, tmp_path, train__steps=0)
    lists = np.load(tmp_path / 'lists.npy')
    np.save(tmp_path / 'lists.npy', lists[::-1].copy())
    with pytest.raises(InputError, match='not the lists that this run was trained with'):
        checkpoint.load(tmp_path)


def test_follow_sees_each_checkpoint_and_ends(one_device):
    steps = list(evaluate.follow(str(one_device), poll=0.01))
    assert steps == checkpoint.available_steps(one_device) and steps[-1] == 20


def test_config_is_plain_values(small_config):
    assert isinstance(small_config, ml_collections.ConfigDict)
    assert json.loads(json.dumps(small_config.to_dict())) == small_config.to_dict()


def test_index_of_another_shape_is_no_start(small_config, tmp_path):
    run(small_config, tmp_path / 'first', train__steps=0)
    with pytest.raises(
        InputError, match=r'has codebooks of shape \[4, 16, 8\], the config wants \[8, 16, 4\]'
    ):
        run(small_config, tmp_path / 'second', init_from=str(tmp_path / 'first'), index__codebooks=8)


def test_damaged_checkpoint_is_named(small_config, tmp_path):
    run(small_config, tmp_path, train__steps=0)
    for path in (tmp_path / 'checkpoints/0/params').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    with pytest.raises(InputError, match='checkpoint 0 cannot be read'):
        checkpoint.load(tmp_path)


def test_interrupted_before_the_first_checkpoint_begins_anew(small_config, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Checkpoints, 'save', interrupted)
        run(small_config, tmp_path / 'interrupted')
    assert (tmp_path / 'interrupted' / 'lists.npy').exists()
    run(small_config, tmp_path / 'interrupted')
    run(small_config, tmp_path / 'whole')
    assert difference(arrays(tmp_path / 'interrupted'), arrays(tmp_path / 'whole')) == 0.0
    logs = [(tmp_path / name / 'metrics.jsonl').read_text().count('\n') for name in ('interrupted', 'whole')]
    assert logs[0] == logs[1]


def test_half_written_checkpoint_is_not_one(small_config, tmp_path):
    run(small_config, tmp_path, train__steps=10)
    half = tmp_path / 'checkpoints' / '20.orbax-checkpoint-tmp'
    half.mkdir()
    (half / 'params').write_text('half')
    assert checkpoint.available_steps(tmp_path) == [0, 10]
    assert run(small_config, tmp_path, train__steps=20)['step'] == 20
    assert not half.exists() and checkpoint.load(tmp_path).step == 20
