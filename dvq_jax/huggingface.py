"""Encoders in Hugging Face's format: a folder of config.json, model.safetensors and the tokenizer's files.

Pooling, normalisation and the longest text are those of a Sentence-Transformers folder (modules.json); in
others the first token's vector, as it is, of texts as long as the positions reach.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.errors import InputError
from dvq_jax.transformer import ACTIVATIONS, Architecture, Pooling, Transformer

try:
    import safetensors
    import safetensors.numpy
    import tokenizers
except ImportError as error:
    raise InputError(
        'a text encoder needs the safetensors and tokenizers packages; pip install "dvq_jax[text]".'
    ) from error

_CONFIG, WEIGHTS, _MODULES = 'config.json', 'model.safetensors', 'modules.json'
_TOKENIZER, _VOCABULARY, _SETTINGS = 'tokenizer.json', 'vocab.txt', 'tokenizer_config.json'
_TOKENIZERS = (_TOKENIZER, _VOCABULARY, _SETTINGS, 'special_tokens_map.json')
_LENGTHS, _PROMPTS = 'sentence_bert_config.json', 'config_sentence_transformers.json'
_TYPES = 'sentence_transformers.models.'
_SIZES = {
    'words': 'vocab_size',
    'positions': 'max_position_embeddings',
    'types': 'type_vocab_size',
    'dim': 'hidden_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'inner': 'intermediate_size',
    'activation': 'hidden_act',
    'epsilon': 'layer_norm_eps',
}
_MARKS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
_POOLINGS = {'cls_token': 'cls', 'mean_tokens': 'mean', 'max_tokens': 'max'}
# Our module -> theirs, of the whole and of a layer.
_OF_ALL = {
    'words': 'embeddings.word_embeddings',
    'positions': 'embeddings.position_embeddings',
    'types': 'embeddings.token_type_embeddings',
    'norm': 'embeddings.LayerNorm',
}
_OF_A_LAYER = {
    'query': 'attention.self.query',
    'key': 'attention.self.key',
    'value': 'attention.self.value',
    'attention_output': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
    'intermediate': 'intermediate.dense',
    'output': 'output.dense',
    'output_norm': 'output.LayerNorm',
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder, opened.

    Attributes:
      folder: where it is.
      module: tokens [b, T] to vectors [b, D].
      params: its parameter tree, float32.
      tokenizer: texts to tokens, cut to the longest text.
      prefix: before each text, such as 'query: '.
    """

    folder: pathlib.Path
    module: Transformer
    params: Mapping[str, Any]
    tokenizer: tokenizers.Tokenizer
    prefix: str = ''

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with those that the model wants around it."""
        prefixed = [self.prefix + text for text in texts]
        return [found.ids for found in self.tokenizer.encode_batch_fast(prefixed)]


def load(
    path: str | os.PathLike,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
    dtype: str = 'float32',
    remat: bool = False,
) -> Encoder:
    """Opens an encoder.

    Args:
      path: the folder.
      pooling: 'cls', 'mean' or 'max'; None takes the folder's.
      normalize: vectors to unit norm; None takes the folder's.
      max_length: of a text, in tokens; None takes the folder's.
      prefix: before each text; None takes the folder's default prompt.
      dtype: of the arithmetic, 'float32' or 'bfloat16'.
      remat: see `Transformer`.

    Returns:
      The encoder.

    Raises:
      InputError: files missing or damaged, another architecture than BERT, a max_length out of reach.

    Example:
      encoder = load('all-MiniLM-L6-v2')
    """
    folder = pathlib.Path(path)
    shape = _architecture(folder)
    stated = _sentence_settings(folder)
    pooling = pooling or stated.get('pooling', 'cls')
    normalize = stated.get('normalize', False) if normalize is None else normalize
    longest = max_length or min(stated.get('max_length', shape.positions), shape.positions)
    if not 2 < longest <= shape.positions:
        raise InputError(f'max_length is {longest}; {folder} takes 3 to {shape.positions} tokens.')
    module = Transformer(shape, pooling=pooling, normalize=normalize, dtype=jnp.dtype(dtype), remat=remat)
    tokenizer = _tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    prefix = stated.get('prefix', '') if prefix is None else prefix
    return Encoder(folder, module, _params(folder, module), tokenizer, prefix)


def write(out: pathlib.Path, encoder: Encoder) -> None:
    """Writes an encoder, as `load` and Sentence-Transformers open it.

    Args:
      out: exists and is empty.
      encoder: of a folder that is still there, its parameters perhaps trained since.
    """
    for name in (_CONFIG, *_TOKENIZERS):
        if (encoder.folder / name).exists():
            shutil.copyfile(encoder.folder / name, out / name)
    tensors, prefix = _read_tensors(encoder.folder)
    for name, path, turned in _names(encoder.module.shape):
        value = np.asarray(_at(encoder.params, path), np.float32)
        tensors[prefix + name] = np.ascontiguousarray(value.T if turned else value)
    # Its own `save_file` makes a file that nobody else may read.
    (out / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, metadata={'format': 'pt'}))
    module, kinds = encoder.module, ['Transformer', 'Pooling']
    kinds += ['Normalize'] if module.normalize else []
    modules = [
        {'idx': place, 'name': str(place), 'path': f'{place}_{kind}' if place else '', 'type': _TYPES + kind}
        for place, kind in enumerate(kinds)
    ]
    modes = {f'pooling_mode_{name}': ours == module.pooling for name, ours in _POOLINGS.items()}
    lengths = {'max_seq_length': encoder.tokenizer.truncation['max_length'], 'do_lower_case': False}
    (out / '1_Pooling').mkdir()
    for name, value in (
        (_MODULES, modules),
        (f'1_Pooling/{_CONFIG}', {'word_embedding_dimension': module.shape.dim, **modes}),
        (_LENGTHS, lengths),
        (_PROMPTS, {'prompts': {'query': encoder.prefix}, 'default_prompt_name': 'query'}),
    ):
        (out / name).write_text(json.dumps(value, indent=1) + '\n', encoding='utf-8')


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read ({error}); give the folder of an encoder.') from error


def _architecture(folder: pathlib.Path) -> Architecture:
    path = folder / _CONFIG
    config = _json(path)
    kind = config.get('model_type')
    if kind != 'bert' or config.get('position_embedding_type', 'absolute') != 'absolute':
        raise InputError(f'{path}: model_type is {kind!r}; encoders here are BERTs with absolute positions.')
    config = {'type_vocab_size': 2, 'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', **config}
    missing = [name for name in _SIZES.values() if name not in config]
    if missing:
        raise InputError(f'{path}: does not say {missing[0]}; give the folder of a BERT encoder.')
    if config['hidden_act'] not in ACTIVATIONS:
        known = ', '.join(ACTIVATIONS)
        raise InputError(f'{path}: hidden_act is {config["hidden_act"]!r}; known are {known}.')
    return Architecture(**{ours: config[theirs] for ours, theirs in _SIZES.items()})


def _sentence_settings(folder: pathlib.Path) -> dict[str, Any]:
    """What a Sentence-Transformers folder says of pooling, norm and length; empty for others."""
    if not (folder / _MODULES).exists():
        return {}
    modules = {module['type'].removeprefix(_TYPES): module['path'] for module in _json(folder / _MODULES)}
    unknown = set(modules) - {'Transformer', 'Pooling', 'Normalize'}
    if unknown or 'Pooling' not in modules:
        raise InputError(
            f'{folder / _MODULES}: has {", ".join(sorted(modules))}; encoders here are Transformer, Pooling '
            'and perhaps Normalize.'
        )
    path = folder / modules['Pooling'] / _CONFIG
    modes = [name for name, on in _json(path).items() if name.startswith('pooling_mode_') and on is True]
    kinds = [_POOLINGS.get(name.removeprefix('pooling_mode_')) for name in modes]
    if len(kinds) != 1 or kinds[0] is None:
        raise InputError(f'{path}: pools by {" and ".join(modes)}; known are cls, mean and max, one of them.')
    settings = {'pooling': kinds[0], 'normalize': 'Normalize' in modules}
    lengths = folder / _LENGTHS
    longest = _json(lengths).get('max_seq_length') if lengths.exists() else None
    prompts = _json(folder / _PROMPTS) if (folder / _PROMPTS).exists() else {}
    prefix = prompts.get('prompts', {}).get(prompts.get('default_prompt_name'), '')
    return settings | {'prefix': prefix} | ({'max_length': longest} if longest else {})


def _tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    path = folder / _TOKENIZER
    try:
        if path.exists():
            return tokenizers.Tokenizer.from_file(str(path))
        path = folder / _VOCABULARY
        settings = folder / _SETTINGS
        lower = _json(settings).get('do_lower_case', True) if settings.exists() else True
        return _word_pieces(path, lower=lower)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises nothing more particular
        raise InputError(
            f'{path}: cannot be read ({error}); an encoder has {_TOKENIZER} or {_VOCABULARY}.'
        ) from error


def _word_pieces(path: pathlib.Path, *, lower: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer, of a vocabulary alone."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(path), unk_token='[UNK]'))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    first, last = ((mark, tokenizer.token_to_id(mark)) for mark in ('[CLS]', '[SEP]'))
    tokenizer.post_processor = tokenizers.processors.BertProcessing(last, first)
    # In a text they are themselves and not letters, so that a title can stand before [SEP].
    tokenizer.add_special_tokens([mark for mark in _MARKS if tokenizer.token_to_id(mark) is not None])
    return tokenizer


def _read_tensors(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """The tensors by name, and the prefix of an encoder's within a larger model."""
    path = folder / WEIGHTS
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f'{path}: cannot be read ({error}); save the model as safetensors, in one file.'
        ) from error
    return tensors, '' if 'embeddings.word_embeddings.weight' in tensors else 'bert.'


def _names(shape: Architecture) -> list[tuple[str, tuple[str, ...], bool]]:
    """(their name, our path, whether it is transposed) of every parameter."""
    modules = [(theirs, (ours,)) for ours, theirs in _OF_ALL.items()]
    for number in range(shape.layers):
        modules += [
            (f'encoder.layer.{number}.{theirs}', (f'layer_{number}', ours))
            for ours, theirs in _OF_A_LAYER.items()
        ]
    names = []
    for theirs, ours in modules:
        if theirs.endswith('_embeddings'):
            names.append((f'{theirs}.weight', (*ours, 'embedding'), False))
            continue
        weight = 'scale' if theirs.endswith('LayerNorm') else 'kernel'
        names.append((f'{theirs}.weight', (*ours, weight), weight == 'kernel'))
        names.append((f'{theirs}.bias', (*ours, 'bias'), False))
    return names


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _params(folder: pathlib.Path, module: Transformer) -> dict[str, Any]:
    tensors, prefix = _read_tensors(folder)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), tokens)['params']
    params: dict[str, Any] = {}
    for name, path, turned in _names(module.shape):
        value = tensors.get(prefix + name)
        shape = _at(expected, path).shape
        if value is None or value.shape != (shape[::-1] if turned else shape):
            found = 'missing' if value is None else f'of shape {list(value.shape)}'
            raise InputError(
                f'{folder / WEIGHTS}: {prefix + name} is {found}, which is not what {_CONFIG} says; '
                'give a complete folder.'
            )
        tree = params
        for part in path[:-1]:
            tree = tree.setdefault(part, {})
        tree[path[-1]] = np.asarray(value.T if turned else value, np.float32)
    return params
