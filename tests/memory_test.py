import os
import subprocess
import sys

import pytest

_PLANNED = """
import sys
import jax
import numpy as np
from dvq_jax import losses, memory, optimizer, towers
from dvq_jax.train_step import Objective, init_state, make_train_step
from dvq_jax.transformer import Architecture, Transformer
from dvq_jax.types import Batch, IndexParams

devices = jax.local_device_count()
for shape in sys.argv[1:]:
    way, *sizes = shape.split(',')
    B, C, D, L, M, K, in_batch, *encoder = map(int, sizes)
    b, floats, tokens = B // devices, 0, None
    tower, taken = towers.build('linear'), np.zeros((1, D), np.float32)
    if encoder:
        layers, heads, inner, length = encoder
        architecture = Architecture(
            words=30_522, positions=512, types=2, dim=D, layers=layers, heads=heads, inner=inner,
            activation='gelu', epsilon=1e-12,
        )
        tower = Transformer(architecture, pooling='mean', normalize=True)
        taken = np.zeros((1, length), np.int32)
        floats = memory.encoder_floats(architecture, queries=b, length=length)
        tokens = np.zeros((devices, b, length), np.int32)
    batch = Batch(
        queries=np.ones((devices, b, D), np.float32),
        doc_ids=np.zeros((devices, b, C), np.int32),
        docs=np.ones((devices, b, C, D), np.float32),
        lists=np.zeros((devices, b, C), np.int32),
        positives=np.zeros((devices, b, 64), np.int32),
        tokens=tokens,
    )
    index = IndexParams(
        centroids=np.ones((L, D), np.float32),
        codebooks=np.ones((M, K, D // M), np.float32),
        rotation=np.eye(D, dtype=np.float32),
    )
    objective = Objective(
        terms=losses.parse_objective('listnet'), temperature=0.05, ivf_weight=1.0, pq_weight=1.0,
        scale_ivf_to_pq=False, in_batch=bool(in_batch), dynamic='dynamic' in way, estimator=way.split()[0],
        estimator_temperature=1.0,
    )
    rates = {'centroids': 1e-2, 'codebooks': 1e-2, 'rotation': None, 'tower': 1e-4}
    adam = optimizer.build(rates, steps=1, schedules=dict.fromkeys(optimizer.GROUPS, 'constant'))
    params = jax.eval_shape(lambda: tower.init(jax.random.key(0), taken)['params'])
    state = jax.eval_shape(lambda tree: init_state(index, tree, adam), params)
    trained = [group for group, rate in rates.items() if rate]
    step = make_train_step(tower=tower, optimizer=adam, objective=objective, trained=trained)
    planned = step.lower(state, batch).compile().memory_analysis()
    predicted = memory.step_bytes(
        batch_size=B, candidates=C, dim=D, lists=L, codewords=K, devices=devices, in_batch=bool(in_batch),
        estimator=objective.estimator, dynamic=objective.dynamic,
        tower_parameters=sum(x.size for x in jax.tree.leaves(params)), tower_floats=floats,
    )
    print(predicted / (planned.argument_size_in_bytes + planned.temp_size_in_bytes))
"""


@pytest.mark.parametrize(
    ('devices', 'shapes'),
    [
        (1, ['hard,128,16,384,1024,16,256,1', 'hard,128,200,768,10000,64,256,1', 'hard,64,8,64,512,32,16,1']),
        (1, ['hard,128,32,384,1024,48,256,0', 'hard,512,32,256,4096,32,256,1']),
        (1, ['hard,128,16,384,1024,16,256,1,6,12,1536,32', 'hard,32,16,384,1024,16,256,1,6,12,1536,128']),
        (1, ['hard,128,16,768,10000,64,256,1,12,12,3072,32', 'hard,128,16,256,512,16,256,1,4,4,512,64']),
        (1, [f'{way},128,16,384,1024,16,256,1' for way in ('hard dynamic', 'softmax', 'softmax dynamic')]),
        (1, [f'{way},128,200,768,10000,64,256,1' for way in ('hard dynamic', 'softmax', 'softmax dynamic')]),
        (4, ['hard,128,16,384,1024,16,256,1', 'hard,256,50,128,2048,16,256,1']),
    ],
)
def test_memory_is_within_a_fifth_of_what_the_compiler_plans(devices, shapes):
    env = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    command = [sys.executable, '-c', _PLANNED, *shapes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == len(shapes)
    assert all(0.8 < ratio < 1.2 for ratio in ratios), ratios
