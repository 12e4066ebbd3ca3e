import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors.numpy

from dvq_jax import embed, huggingface
from dvq_jax.errors import InputError

WORDS = [
    'what',
    'how',
    'is',
    'a',
    'the',
    'list',
    'of',
    'query',
    'document',
    'index',
    'search',
    'vector',
    'train',
    'score',
]
VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS, '##s', '##ing']
DIM, LAYERS, HEADS, INNER, POSITIONS = 16, 2, 4, 32, 24
TEXTS = ['How is a vector trains?', 'the list of the list', 'searching', 'what ' * 40]


def write_encoder(folder, *, sentence=None, prefix='', **changes):
    """A small random encoder as Hugging Face writes one; returns its tensors."""
    folder.mkdir(exist_ok=True)
    config = {
        'model_type': 'bert', 'vocab_size': len(VOCABULARY), 'hidden_size': DIM, 'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS, 'intermediate_size': INNER, 'hidden_act': 'gelu',
        'max_position_embeddings': POSITIONS, 'type_vocab_size': 2, 'layer_norm_eps': 1e-12,
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
    rng = np.random.default_rng(0)
    shapes = {
        'embeddings.word_embeddings.weight': (len(VOCABULARY), DIM),
        'embeddings.position_embeddings.weight': (POSITIONS, DIM),
        'embeddings.token_type_embeddings.weight': (2, DIM),
    }
    dense = {'attention.self.query': (DIM, DIM), 'attention.self.key': (DIM, DIM)}
    dense |= {'attention.self.value': (DIM, DIM), 'attention.output.dense': (DIM, DIM)}
    dense |= {'intermediate.dense': (INNER, DIM), 'output.dense': (DIM, INNER)}
    norms = ['embeddings.LayerNorm']
    for layer in range(LAYERS):
        start = f'encoder.layer.{layer}.'
        norms += [start + 'attention.output.LayerNorm', start + 'output.LayerNorm']
        for name, shape in dense.items():
            shapes |= {f'{start}{name}.weight': shape, f'{start}{name}.bias': shape[:1]}
    for name in norms:
        shapes |= {f'{name}.weight': (DIM,), f'{name}.bias': (DIM,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    tensors |= {f'{name}.weight': tensors[f'{name}.weight'] + 1 for name in norms}
    tensors['pooler.dense.weight'] = np.ones((DIM, DIM), np.float32)
    named = {prefix + name: value for name, value in tensors.items()}
    safetensors.numpy.save_file(named, folder / 'model.safetensors')
    if sentence:
        kinds = ['Transformer', 'Pooling', *(['Normalize'] if sentence['normalize'] else [])]
        modules = [
            {'type': f'sentence_transformers.models.{kind}', 'path': f'{place}_{kind}'}
            for place, kind in enumerate(kinds)
        ]
        (folder / 'modules.json').write_text(json.dumps(modules))
        (folder / '1_Pooling').mkdir(exist_ok=True)
        modes = {
            f'pooling_mode_{name}': name == sentence['pooling']
            for name in ('cls_token', 'mean_tokens', 'max_tokens')
        }
        (folder / '1_Pooling' / 'config.json').write_text(
            json.dumps({'word_embedding_dimension': DIM, **modes})
        )
        (folder / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': 20}))
    return tensors


def norm(x, weight, bias):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * weight + bias


def expected(tensors, ids):
    """The hidden states of one text, [T, D], by BERT's formulas in float64."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}

    def linear(name, x):
        return x @ t[f'{name}.weight'].T + t[f'{name}.bias']

    x = t['embeddings.word_embeddings.weight'][ids] + t['embeddings.position_embeddings.weight'][: len(ids)]
    x = x + t['embeddings.token_type_embeddings.weight'][0]
    x = norm(x, t['embeddings.LayerNorm.weight'], t['embeddings.LayerNorm.bias'])
    for layer in range(LAYERS):
        at = f'encoder.layer.{layer}.'
        q, k, v = (linear(f'{at}attention.self.{name}', x) for name in ('query', 'key', 'value'))
        mixed = np.empty_like(x)
        for head in range(HEADS):
            own = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            weights = np.exp(q[:, own] @ k[:, own].T / math.sqrt(DIM / HEADS))
            mixed[:, own] = weights / weights.sum(1, keepdims=True) @ v[:, own]
        name = f'{at}attention.output.LayerNorm'
        x = norm(x + linear(f'{at}attention.output.dense', mixed), t[f'{name}.weight'], t[f'{name}.bias'])
        inner = linear(f'{at}intermediate.dense', x)
        inner = inner * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(inner)
        name = f'{at}output.LayerNorm'
        x = norm(x + linear(f'{at}output.dense', inner), t[f'{name}.weight'], t[f'{name}.bias'])
    return x


POOLED = {'cls': lambda x: x[0], 'mean': lambda x: x.mean(0), 'max': lambda x: x.max(0)}


@pytest.mark.parametrize('pooling', POOLED)
@pytest.mark.parametrize('normalize', [True, False])
def test_vectors_are_those_of_the_formulas(tmp_path, pooling, normalize):
    tensors = write_encoder(tmp_path / 'E')
    encoder = huggingface.load(tmp_path / 'E', pooling=pooling, normalize=normalize)
    vectors = embed.Embedder(encoder)(TEXTS)
    for vector, ids in zip(vectors, encoder.tokens(TEXTS), strict=True):
        wanted = POOLED[pooling](expected(tensors, ids))
        wanted = wanted / np.linalg.norm(wanted) if normalize else wanted
        np.testing.assert_allclose(vector, wanted, atol=2e-5)


def test_tokens_are_word_pieces_between_marks_and_cut(tmp_path):
    write_encoder(tmp_path / 'E')
    encoder = huggingface.load(tmp_path / 'E', max_length=7)
    pieces = [[VOCABULARY[i] for i in ids] for ids in encoder.tokens(TEXTS)]
    assert pieces[0] == ['[CLS]', 'how', 'is', 'a', 'vector', 'train', '[SEP]']
    assert pieces[2] == ['[CLS]', 'search', '##ing', '[SEP]'] and len(pieces[3]) == 7
    # As `collection` writes a title before a text.
    pair = encoder.tokenizer.encode('how is', 'a vector').ids
    assert list(encoder.tokens(['how is [SEP] a vector'])[0]) == pair


@pytest.mark.parametrize('pooling', ['cls_token', 'mean_tokens', 'max_tokens'])
def test_a_sentence_transformers_folder_says_how_to_pool(tmp_path, pooling):
    write_encoder(tmp_path / 'E', sentence={'pooling': pooling, 'normalize': True})
    encoder = huggingface.load(tmp_path / 'E')
    assert encoder.module.pooling == pooling.partition('_')[0] and encoder.module.normalize
    assert len(encoder.tokens(TEXTS)[3]) == 20
    write_encoder(tmp_path / 'E', sentence={'pooling': 'weighted', 'normalize': True})
    with pytest.raises(InputError, match='known are cls, mean and max'):
        huggingface.load(tmp_path / 'E')


def test_an_encoder_within_a_larger_model_is_found_and_written_back(tmp_path):
    tensors = write_encoder(
        tmp_path / 'E', prefix='bert.', sentence={'pooling': 'mean_tokens', 'normalize': True}
    )
    encoder = huggingface.load(tmp_path / 'E')
    moved = {
        **encoder.params,
        'norm': {'scale': encoder.params['norm']['scale'] * 2, 'bias': encoder.params['norm']['bias']},
    }
    (tmp_path / 'F').mkdir()
    huggingface.write(tmp_path / 'F', dataclasses.replace(encoder, params=moved, prefix='query: '))
    written = safetensors.numpy.load_file(tmp_path / 'F' / 'model.safetensors')
    assert set(written) == {f'bert.{name}' for name in tensors}
    for name, value in tensors.items():
        scale = 2 if name == 'embeddings.LayerNorm.weight' else 1
        np.testing.assert_array_equal(written[f'bert.{name}'], scale * value)
    again = huggingface.load(tmp_path / 'F')
    assert again.module == encoder.module and again.prefix == 'query: '
    np.testing.assert_array_equal(again.params['norm']['scale'], moved['norm']['scale'])


def test_bfloat16_rounds_and_no_more(tmp_path):
    write_encoder(tmp_path / 'E')
    exact = embed.Embedder(huggingface.load(tmp_path / 'E', normalize=True))(TEXTS)
    rounded = embed.Embedder(huggingface.load(tmp_path / 'E', normalize=True, dtype='bfloat16'))(TEXTS)
    assert 1e-6 < np.abs(exact - rounded).max() < 0.05


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'roberta'}, "model_type is 'roberta'"),
        ({'hidden_act': 'swish'}, "hidden_act is 'swish'"),
        ({'intermediate_size': 31}, 'is of shape'),
        ({'num_hidden_layers': 3}, 'is missing'),
    ],
)
def test_what_is_not_such_an_encoder_is_refused(tmp_path, changes, message):
    write_encoder(tmp_path / 'E', **changes)
    with pytest.raises(InputError, match=message):
        huggingface.load(tmp_path / 'E')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'vocab.txt'])
def test_a_damaged_folder_is_named(tmp_path, name):
    write_encoder(tmp_path / 'E')
    (tmp_path / 'E' / name).unlink()
    with pytest.raises(InputError, match=name):
        huggingface.load(tmp_path / 'E')


@pytest.mark.parametrize('length', [2, 25])
def test_a_length_out_of_reach_is_refused(tmp_path, length):
    write_encoder(tmp_path / 'E')
    with pytest.raises(InputError, match=f'max_length is {length}'):
        huggingface.load(tmp_path / 'E', max_length=length)
