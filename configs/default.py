"""Settings that serve most corpora: routed lists, ListNet, a linear query tower, codes chosen for queries.

No labels are used. Temperatures and rates are relative to the data, so that embeddings of any dimension and
norm take the same ones.

python -m dvq_jax.cli.train --config=configs/default.py --config.data.dataset=DATASET --workdir=W

Set `index.lists` to about the square root of the number of documents times 4, and `index.codebooks` to the
bytes that a document may cost. Cost: see `configs/pycode.py` for a measured one.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Every setting, with its default."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # 'relative' to the data: the temperature in standard deviations of a query's Top-K scores, rates of
    # centroids and codebooks in their root mean squares; or 'absolute', as papers publish them.
    config.scales = 'relative'
    config.resume_from = ''  # another run's workdir: go on from its latest checkpoint
    config.init_from = ''  # another run's workdir: start from its index and query tower

    config.data = ml_collections.ConfigDict()
    config.data.dataset = ''  # what `prepare` wrote
    config.data.batch_size = 128  # B, queries in a global batch
    config.data.threads = 4  # that read ahead
    config.data.placement = (
        'auto'  # of the corpus: 'host', 'replicated' or 'sharded', see dvq_jax/placement.py
    )

    config.index = ml_collections.ConfigDict()
    config.index.lists = 1024  # L
    config.index.codebooks = 16  # M
    config.index.codewords = 256  # K
    config.index.rotation = 'opq'  # or 'identity'
    config.index.copies = 1  # lists that a document is stored in; 2 finds more and doubles its bytes

    config.initialize = ml_collections.ConfigDict()
    config.initialize.sample = 262_144  # documents that k-means and OPQ see
    config.initialize.coarse_iterations = 20
    config.initialize.opq_iterations = 20
    config.initialize.pq_iterations = 10
    config.initialize.seeding = 'sample'  # or 'plusplus'
    config.initialize.spherical = False  # centroids of unit norm

    config.routing = ml_collections.ConfigDict()  # lists that queries reach, see dvq_jax/routing.py
    config.routing.rounds = 4  # 0: k-means, and nearest lists
    config.routing.passes = 3.25  # over the training queries, a round

    config.codes = ml_collections.ConfigDict()  # codes chosen for queries, see dvq_jax/codes.py
    config.codes.queries = 64  # of a document, at most; 0: nearest codewords
    config.codes.prior = 100.0  # queries from everywhere on top of them
    config.codes.sweeps = 4

    config.candidates = 'top100:16+ib'  # see dvq_jax/candidates.py

    config.loss = ml_collections.ConfigDict()
    config.loss.name = 'listnet'  # or a sum such as 'listnet+0.5*contrastive', see dvq_jax/losses.py
    config.loss.temperature = 1.25
    config.loss.ivf_weight = 1.0
    config.loss.pq_weight = 1.0
    config.loss.scale_ivf_to_pq = False  # make both students weigh the same

    config.quantizer = ml_collections.ConfigDict()
    config.quantizer.assignment = 'frozen'  # or 'dynamic': re-assign documents to lists at every step
    config.quantizer.estimator = 'hard'  # or 'softmax'
    config.quantizer.temperature = 1.0  # of 'softmax', in squared distance

    config.tower = ml_collections.ConfigDict()
    config.tower.name = 'linear'  # or 'identity', 'mlp', 'transformer': the query encoder itself
    config.tower.mlp = ml_collections.ConfigDict({'hidden': 512})
    config.tower.transformer = ml_collections.ConfigDict()
    config.tower.transformer.model = ''  # the encoder's folder, in Hugging Face's format
    config.tower.transformer.max_length = 32  # of a query, in tokens
    config.tower.transformer.pooling = config_dict.placeholder(str)  # 'cls', 'mean', 'max'; else the folder's
    config.tower.transformer.normalize = config_dict.placeholder(bool)
    config.tower.transformer.prefix = config_dict.placeholder(str)  # before each query
    config.tower.transformer.dtype = 'float32'  # or 'bfloat16'
    config.tower.transformer.remat = False  # hidden states computed again, not kept, for the gradient

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.warmup = 0.1  # share of the steps in which rates rise
    config.optimizer.weight_decay = 0.01  # of the tower
    config.optimizer.clip_norm = config_dict.placeholder(float)  # unset: not clipped
    config.optimizer.rates = ml_collections.ConfigDict()  # a group without a rate is frozen
    config.optimizer.rates.centroids = 0.0125
    config.optimizer.rates.codebooks = 0.01
    config.optimizer.rates.rotation = config_dict.placeholder(float)
    config.optimizer.rates.tower = 1e-4
    config.optimizer.schedules = ml_collections.ConfigDict()  # 'cosine', 'linear' or 'constant'
    config.optimizer.schedules.centroids = 'cosine'
    config.optimizer.schedules.codebooks = 'cosine'
    config.optimizer.schedules.rotation = 'cosine'
    config.optimizer.schedules.tower = 'cosine'

    config.train = ml_collections.ConfigDict()
    config.train.passes = 3.25  # over the training queries
    config.train.steps = config_dict.placeholder(int)  # instead of passes; 0: the start alone
    config.train.products = 'float32'  # or 'bfloat16': of a step's matrix products, summed in float32
    config.train.log_every = 50
    config.train.checkpoint_every = 500  # also evaluates on the dev queries
    config.train.profile = config_dict.placeholder(int)  # trace ten steps from this one on to WORKDIR/profile

    config.eval = ml_collections.ConfigDict()
    config.eval.nprobe = 10  # P of the dev metric
    # Decides which checkpoint is best. A query has ten of the teacher's documents but often a single label:
    # this varies least between checkpoints. What is trained with labels leaves the teacher: then 'RR@10',
    # 'nDCG@10' and so on choose better.
    config.eval.metric = 'teacher@10'
    return config
