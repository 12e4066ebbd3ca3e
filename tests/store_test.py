from dvq_jax import store


def test_encodings_of_checkpoints_that_are_gone_go_too(tmp_path):
    for step in (0, 10, 20):
        store.store_of(tmp_path, step)
    store.prune_stores(tmp_path, [0, 20])
    assert sorted(path.name for path in (tmp_path / 'encodings').iterdir()) == ['0', '20']
