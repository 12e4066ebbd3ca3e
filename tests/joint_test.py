"""The query encoder, trained with the index."""

import jax
import numpy as np
import pytest

import dvq_jax
from dvq_jax import checkpoint, embed, huggingface, towers
from dvq_jax.errors import InputError
from dvq_jax.run import open_run
from dvq_jax.train import train
from tests.text_search_test import SMALL, command, folder, succeed  # noqa: F401

SETTINGS = {
    'tower.name': 'transformer',
    'optimizer.rates.tower': 1e-3,
    'train.checkpoint_every': 2,
    'tower.transformer.max_length': 20,
}


def settings(dataset, model, **changes):
    made = {**SMALL, **SETTINGS, 'data.dataset': dataset, 'tower.transformer.model': model, **changes}
    return [f'--config.{name}={value}' for name, value in made.items()]


def config_of(dataset, model, **changes):
    from configs import default

    config = default.get_config()
    made = {
        **SMALL,
        **SETTINGS,
        'data.dataset': str(dataset),
        'tower.transformer.model': str(model),
        **changes,
    }
    with config.unlocked():
        config.update_from_flattened_dict(made)
    return config


@pytest.fixture(scope='module')
def joint(folder):  # noqa: F811
    """A run that trained the encoder, beside what the collection's fixture made."""
    files = [f'--corpus={folder / "docs.npy"}', f'--corpus_ids={folder / "docs.tsv"}', '--query_texts']
    files += [f'--queries={folder / "queries.npy"}', f'--query_ids={folder / "queries.tsv"}']
    succeed('prepare', *files, '--topk=50', f'--out={folder / "TEXTS"}')
    model = settings(folder / 'TEXTS', folder / 'E')
    succeed('train', '--config=configs/default.py', f'--workdir={folder / "J"}', *model)
    return folder


def leaves(workdir, step='latest'):
    return jax.tree.leaves(checkpoint.load(workdir, step).tower.params)


def furthest(ours, theirs):
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def test_the_encoder_starts_as_the_teacher_and_moves(joint):
    trained = checkpoint.load(joint / 'J', 0)
    texts = [line.split('\t')[1] for line in (joint / 'queries.tsv').read_text().splitlines()]
    queries = np.load(joint / 'queries.npy')
    np.testing.assert_allclose(towers.apply(trained.tower, queries, texts), queries, atol=1e-5)
    assert furthest(leaves(joint / 'J', 0), leaves(joint / 'J')) > 1e-3
    moved = towers.apply(checkpoint.load(joint / 'J').tower, queries, texts)
    assert np.abs(moved - queries).max() > 1e-3


def embedded(workdir, joint):
    """What the trained encoder makes of the queries; parameters without a gradient may be anywhere."""
    texts = [line.split('\t')[1] for line in (joint / 'queries.tsv').read_text().splitlines()]
    return towers.apply(checkpoint.load(workdir).tower, np.zeros((len(texts), 16)), texts)


def test_an_interrupted_run_ends_with_the_same_encoder(joint, tmp_path):
    run = config_of(joint / 'TEXTS', joint / 'E')
    for name in ('tower', 'centroids', 'codebooks'):
        run.optimizer.schedules[name] = 'constant'
    run.optimizer.warmup, run.train.steps = 0.0, 2
    train(run, str(tmp_path / 'halves'))
    run.train.steps, run.resume_from = 4, str(tmp_path / 'halves')
    train(run, str(tmp_path / 'elsewhere'))
    run.resume_from = ''
    train(run, str(tmp_path / 'halves'))
    train(run, str(tmp_path / 'whole'))
    for name in ('halves', 'elsewhere'):
        assert furthest(leaves(tmp_path / name), leaves(tmp_path / 'whole')) == 0
    np.testing.assert_array_equal(
        embedded(tmp_path / 'elsewhere', joint), embedded(tmp_path / 'whole', joint)
    )


def test_devices_and_remat_change_nothing(joint, tmp_path):
    wanted = embedded(joint / 'J', joint)
    train(
        config_of(joint / 'TEXTS', joint / 'E', **{'tower.transformer.remat': True}), str(tmp_path / 'remat')
    )
    np.testing.assert_allclose(embedded(tmp_path / 'remat', joint), wanted, atol=1e-4)
    model = settings(joint / 'TEXTS', joint / 'E')
    arguments = ['--config=configs/default.py', f'--workdir={tmp_path / "two"}', *model]
    assert command('train', *arguments, devices=2).returncode == 0
    np.testing.assert_allclose(embedded(tmp_path / 'two', joint), wanted, atol=1e-4)


def test_the_trained_encoder_goes_with_the_index(joint):
    succeed('export', f'--workdir={joint / "J"}', '--lookup=float', f'--out={joint / "JOINT"}')
    index = dvq_jax.open_index(joint / 'JOINT')
    trained = checkpoint.load(joint / 'J')
    texts = ['the list of vector', 'how is a query']
    np.testing.assert_allclose(
        index.embed(texts), towers.apply(trained.tower, np.zeros((2, 16)), texts), atol=1e-6
    )
    original = embed.Embedder(huggingface.load(joint / 'E'))(texts)
    assert np.abs(index.embed(texts) - original).max() > 1e-3
    # What evaluation finds, serving finds.
    qrels = ''.join(f'd{row} 0 d{row} 1\n' for row in range(120))
    (joint / 'qrels.txt').write_text(qrels)
    judged = [f'--query_ids={joint / "queries.tsv"}', f'--qrels={joint / "qrels.txt"}']
    measured = succeed(
        'evaluate', f'--workdir={joint / "J"}', f'--queries={joint / "queries.npy"}', *judged, '--nprobe=4'
    )
    text = [f'--text={joint / "queries.tsv"}', f'--qrels={joint / "qrels.txt"}', '--nprobe=4']
    served = succeed('search', f'--index={joint / "JOINT"}', *text, f'--out={joint / "joint.trec"}')
    assert measured['nprobe']['4']['R@100'] == pytest.approx(served['R@100'], abs=0.02)
    # Embeddings of the encoder before it was trained are another matter.
    vectors = [f'--queries={joint / "queries.npy"}', f'--out={joint / "other.trec"}', '--nprobe=4']
    done = command('search', f'--index={joint / "JOINT"}', *vectors)
    assert done.returncode == 0 and 'its query encoder was trained with it' in done.stderr


def test_a_run_may_be_evaluated_when_the_first_folder_is_gone(joint, tmp_path):
    moved = joint / 'E'
    moved.rename(tmp_path / 'gone')
    try:
        done = succeed('evaluate', f'--workdir={joint / "J"}', '--nprobe=4')
        assert done['step'] == 4
    finally:
        (tmp_path / 'gone').rename(moved)


@pytest.mark.parametrize(
    ('dataset', 'changes', 'message'),
    [
        ('DATASET', {}, 'holds no texts of queries'),
        ('TEXTS', {'tower.transformer.model': ''}, r'tower\.transformer\.model is empty'),
        ('TEXTS', {'tower.transformer.model': '/nowhere'}, '/nowhere/config.json: cannot be read'),
    ],
)
def test_what_it_cannot_train_with_is_refused(joint, tmp_path, dataset, changes, message):
    with pytest.raises(InputError, match=message):
        open_run(config_of(joint / dataset, joint / 'E', **changes), str(tmp_path / 'W'))


def test_another_encoder_than_the_teacher_is_mentioned(joint, tmp_path, capfd):
    run = config_of(joint / 'TEXTS', joint / 'E', **{'train.steps': 0})
    train(run, str(tmp_path / 'same'))
    assert 'are not those of the dataset' not in capfd.readouterr().err
    run.tower.transformer.prefix = 'the list '
    train(run, str(tmp_path / 'prefixed'))
    assert 'are not those of the dataset' in capfd.readouterr().err
    run.tower.name = 'linear'
    train(run, str(tmp_path / 'linear'))
    export = [f'--workdir={tmp_path / "linear"}', f'--encoder={joint / "E"}']
    assert 'are not those' not in command('export', *export, f'--out={tmp_path / "A"}').stderr
    other = command('export', *export, '--prefix=the list ', f'--out={tmp_path / "B"}')
    assert other.returncode == 0 and 'are not those of the dataset' in other.stderr


def test_texts_are_asked_for(joint, tmp_path):
    refused = command(
        'evaluate', f'--workdir={joint / "J"}', f'--queries={joint / "queries.npy"}', '--nprobe=4'
    )
    assert refused.returncode == 2 and 'the query tower reads texts' in refused.stderr
    files = [f'--corpus={joint / "docs.npy"}', f'--queries={joint / "queries.npy"}', '--query_texts']
    refused = command('prepare', *files, '--topk=5', f'--out={tmp_path / "D"}')
    assert refused.returncode == 2 and '--query_ids is not given' in refused.stderr
    refused = command(
        'export', f'--workdir={joint / "J"}', f'--encoder={joint / "E"}', f'--out={tmp_path / "I"}'
    )
    assert refused.returncode == 2 and 'has trained an encoder of its own' in refused.stderr
