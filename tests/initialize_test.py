import numpy as np
import pytest

from dvq_jax import initialize, quantizer
from dvq_jax.errors import InputError
from tests.conftest import clustered


@pytest.fixture(scope='module')
def sample():
    return clustered(np.random.default_rng(0), 4000, dim=32)


@pytest.mark.parametrize('nearest', [True, False])
def test_codebooks_are_fitted_to_what_the_given_lists_leave(sample, nearest):
    centroids = initialize.coarse(sample, lists=8, iterations=5)
    lists = ((sample[:, None] - centroids) ** 2).sum(-1).argmin(1).astype(np.int32)
    decided = lists if nearest else (lists + 1) % 8
    settings = {'codebooks': 4, 'codewords': 16, 'rotation': 'identity', 'pq_iterations': 5}
    index = initialize.fine(sample, centroids, decided=decided, **settings)
    np.testing.assert_array_equal(index.centroids, centroids)
    gaps = []
    for own in (decided, (decided + 1) % 8):
        left = sample - np.asarray(quantizer.reconstruct(index, quantizer.encode(index, sample, own)))
        gaps.append(np.square(left).sum(1).mean() / np.square(sample - centroids[own]).sum(1).mean())
    assert gaps[0] < gaps[1]
    if nearest:
        again = initialize.fine(sample, centroids, **settings)
        np.testing.assert_array_equal(again.codebooks, index.codebooks)


@pytest.mark.parametrize('rotation', ['identity', 'opq'])
def test_initial_index_quantizes_the_residuals(sample, rotation):
    index = initialize.initialize(
        sample, lists=16, codebooks=4, codewords=16, rotation=rotation, opq_iterations=5, pq_iterations=5
    )
    np.testing.assert_allclose(index.rotation @ index.rotation.T, np.eye(32), atol=1e-5)
    encoding = quantizer.encode(index, sample)
    coarse = quantizer.rotate(index, sample) - index.centroids[encoding.lists]
    full = quantizer.rotate(index, sample) - quantizer.reconstruct(index, encoding)
    norms = [float(np.square(part).sum(-1).mean()) for part in (sample, coarse, full)]
    assert norms[0] > 1.5 * norms[1] > 1.5 * norms[2]


def test_same_seed_same_bits(sample):
    def once():
        return initialize.initialize(
            sample.astype(np.float16), lists=8, codebooks=4, codewords=16, sample=1000,
            coarse_iterations=2, opq_iterations=2, pq_iterations=1, seed=5,
        )  # fmt: skip

    for ours, again in zip(vars(once()).values(), vars(once()).values(), strict=True):
        np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'codebooks': 5}, 'codebooks is 5, which does not divide the dimension 32'),
        ({'codewords': 257}, 'codewords is 257'),
        (
            {'codewords': 128, 'sample': 100},
            '128 centers need 128 documents or more, the training sample has 100',
        ),
        ({'lists': 5000}, '5000 centers need 5000 documents or more, the training sample has 4000'),
        ({'rotation': 'pca'}, "rotation is 'pca'"),
    ],
)
def test_bad_settings_are_refused(sample, changes, message):
    settings = {'lists': 8, 'codebooks': 4, 'codewords': 16, **changes}
    with pytest.raises(InputError, match=message):
        initialize.initialize(sample, **settings)
