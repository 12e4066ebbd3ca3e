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
    flags = {'dynamic', 'rotation', 'identity'} & set(way.split())
    estimator, loss = [*(word for word in way.split() if word not in flags), 'listnet'][:2]
    terms = losses.parse_objective(loss)
    B, C, D, L, M, K, in_batch, *encoder = map(int, sizes)
    b, floats, tokens = B // devices, 0, None
    tower, taken = towers.build('identity' if 'identity' in flags else 'linear'), np.zeros((1, D), np.float32)
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
        terms=terms, temperature=0.05, ivf_weight=1.0, pq_weight=1.0, scale_ivf_to_pq=False,
        in_batch=bool(in_batch), dynamic='dynamic' in flags, estimator=estimator,
        estimator_temperature=1.0,
    )
    rates = {'centroids': 1e-2, 'codebooks': 1e-2, 'rotation': None, 'tower': 1e-4}
    rates['rotation'] = 1e-3 if 'rotation' in flags else None
    adam = optimizer.build(rates, steps=1, schedules=dict.fromkeys(optimizer.GROUPS, 'constant'))
    params = jax.eval_shape(lambda: tower.init(jax.random.key(0), taken).get('params', {}))
    state = jax.eval_shape(lambda tree: init_state(index, tree, adam), params)
    trained = [group for group, rate in rates.items() if rate]
    step = make_train_step(tower=tower, optimizer=adam, objective=objective, trained=trained)
    planned = step.lower(state, batch).compile().memory_analysis()
    predicted = memory.step_bytes(memory.Step(
        batch_size=B, candidates=C, dim=D, lists=L, codebooks=M, codewords=K, terms=terms, devices=devices,
        in_batch=bool(in_batch), estimator=estimator, dynamic=objective.dynamic, trained=trained,
        tower_parameters=sum(x.size for x in jax.tree.leaves(params)), tower_floats=floats,
    ))
    print(predicted / (planned.argument_size_in_bytes + planned.temp_size_in_bytes))
"""


# estimator, loss and more, B, C, D, L, M, K, in-batch or not; and layers, heads, inner width and tokens of an
# encoder that is the tower.
_SMALL, _TOP_200 = '128,16,384,1024,16,256,1', '128,200,768,10000,64,256,1'
_SHAPES = {
    'sizes': f"""
        hard,{_SMALL}
        hard,{_TOP_200}
        hard,64,8,64,512,32,16,1
        softmax dynamic,64,8,64,512,32,16,1
        hard,512,32,256,4096,32,256,1
        hard,512,200,64,1024,16,256,0
        softmax,128,100,768,4096,32,16,0
        hard dynamic identity,512,16,768,2048,16,16,0""",
    'estimators': f"""
        softmax,{_TOP_200}
        hard dynamic,{_TOP_200}
        softmax dynamic,{_TOP_200}""",
    'losses': f"""
        hard ranknet,{_SMALL}
        hard ranknet,{_TOP_200}
        hard listnet+ranknet,256,64,64,256,16,16,0
        hard mse,512,50,64,256,16,16,1
        hard listnet+contrastive,512,50,64,256,16,16,1
        softmax dynamic margin_mse,512,50,64,256,16,16,1
        softmax dynamic mse+kl,512,50,64,256,16,16,1""",
    'encoders': f"""
        hard,{_SMALL},6,12,1536,32
        hard,32,16,384,1024,16,256,1,3,12,1536,128
        hard,128,16,768,10000,64,256,1,6,12,3072,32""",
    '4 devices': """
        hard,256,50,128,2048,16,256,1
        hard rotation identity,256,64,768,2048,32,16,1""",
    '8 devices': """
        softmax contrastive,512,100,768,1024,32,256,1
        softmax dynamic,256,16,128,10000,32,256,1""",
}


@pytest.mark.parametrize('name', _SHAPES)
def test_memory_is_within_a_fifth_of_what_the_compiler_plans(name):
    shapes = [line.strip() for line in _SHAPES[name].split('\n') if line]
    devices = int(name.split()[0]) if 'devices' in name else 1
    env = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    command = [sys.executable, '-c', _PLANNED, *shapes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == len(shapes)
    assert all(0.8 < ratio < 1.2 for ratio in ratios), ratios
