"""Docstring to function retrieval over installed Python sources: *search the Python standard library*.

The recipe is CodeSearchNet's (Husain et al., 2019, arXiv 1909.09436): a function's docstring is the query,
the function without it is the document. Here:

- a document is a function or a method (one nested in another is part of it); its text is its qualified name
  and its code without any docstring, comments kept;
- a query is the first paragraph of a docstring, of three words or more; functions that share a paragraph
  share the query, and all of them are relevant to it;
- left out: special methods (`__init__`, ...), whose names and docstrings say little of what they do, and
  bodies that do nothing (`pass`, `...`, `raise NotImplementedError`).
"""

import ast
import collections
import hashlib
import os
import pathlib
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from dvq_jax.datasets.collection import DOCUMENTS, Collection, Record
from dvq_jax.errors import InputError

# Nobody who searches a library wants these: tests, demos, an editor, tables of characters, and the build
# tools and old grammars that left the standard library. A folder whose name is not an identifier
# (site-packages) is no package and is not read either.
_LEFT_OUT = """
__pycache__ __phello__ test tests idlelib turtledemo pydoc_data encodings ensurepip distutils lib2to3
"""
SKIPPED = frozenset(_LEFT_OUT.split())
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.ClassDef, *_FUNCTIONS)
_SPECIAL = re.compile(r'__\w+__')
_SHORTEST_QUERY = 3
# In the text of a document the name counts as much as three mentions in the code.
_NAME_REPEATS = 3
_DEV_SHARE = 5


class Function(NamedTuple):
    """One function or method.

    Attributes:
      name: its qualified name, module.Class.method; unique: a re-definition is 'name:2', 'name:3', ...
      path: its file, relative to the source root.
      line: the line of its `def`, from 1.
      code: its source without docstrings, decorators included.
      summary: its docstring's first paragraph on one line, or ''.
    """

    name: str
    path: str
    line: int
    code: str
    summary: str

    @property
    def text(self) -> str:
        """What is embedded: the qualified name and the code."""
        return f'{self.name} ' * _NAME_REPEATS + self.code


class Query(NamedTuple):
    """A docstring's first paragraph and the functions that it describes.

    Attributes:
      id: the name of the first function.
      text: the paragraph.
      rows: the rows of all its functions, at least one, ascending.
    """

    id: str
    text: str
    rows: tuple[int, ...]


def standard_library() -> pathlib.Path:
    """The folder of the running interpreter's own library."""
    return pathlib.Path(sysconfig.get_path('stdlib'))


def source_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """The modules under a root, `SKIPPED` folders aside, in the order of their paths."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name not in SKIPPED)
        for name in sorted(names):
            if name.endswith('.py') and name.removesuffix('.py').isidentifier():
                yield pathlib.Path(folder, name)


def module_name(path: pathlib.PurePath) -> str:
    """The dotted name of a module from its path relative to the root: json/__init__.py is json."""
    parts = path.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


def first_paragraph(docstring: str) -> str:
    """The text before the first blank line, on one line; lone surrogates become '?'."""
    text = ' '.join(re.split(r'\n\s*\n', docstring.strip(), maxsplit=1)[0].split())
    return text.encode(errors='replace').decode()


def _docstring(node: ast.AST) -> ast.Constant | None:
    """The constant that is the docstring of a class or function, where it has one."""
    first = node.body[0] if isinstance(node, _DOCUMENTED) else None
    constant = first.value if isinstance(first, ast.Expr) else None
    return constant if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else None


def _does_nothing(node: ast.FunctionDef) -> bool:
    def empty(statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Raise):
            return 'NotImplemented' in ast.unparse(statement)
        constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        return constant or isinstance(statement, ast.Pass)

    return all(empty(statement) for statement in node.body)


def _code(lines: Sequence[bytes], node: ast.FunctionDef) -> str:
    """The source of a function without the docstrings in it: its own and those of what is nested.

    The lines are bytes because `ast` counts columns in UTF-8 bytes.
    """
    start = min(part.lineno for part in (node, *node.decorator_list)) - 1
    kept = list(lines[start : node.end_lineno])
    for text in filter(None, map(_docstring, ast.walk(node))):
        first, last = text.lineno - 1 - start, text.end_lineno - 1 - start
        around = kept[first][: text.col_offset] + kept[last][text.end_col_offset :]
        kept[first : last + 1] = [around] + [b''] * (last - first)
    return b'\n'.join(line for line in kept if line.strip()).decode()


def _definitions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods with their qualified names, also those under `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, _FUNCTIONS):
            yield f'{prefix}.{node.name}', node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f'{prefix}.{node.name}')
        else:
            for field in ('body', 'handlers', 'orelse', 'finalbody'):
                yield from _definitions(getattr(node, field, ()), prefix)


def parse(source: str, *, module: str, path: str) -> list[Function]:
    """The documents of one module; names may still repeat.

    Args:
      source: the module's text.
      module: its dotted name.
      path: what `Function.path` shall say.

    Returns:
      Its functions and methods in the order of their definition.

    Raises:
      SyntaxError, ValueError: the source is not Python that the running interpreter understands.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        tree = ast.parse(source)
    lines = source.encode().split(b'\n')
    functions = []
    for name, node in _definitions(tree.body, module):
        if _SPECIAL.fullmatch(node.name) or _does_nothing(node):
            continue
        docstring = _docstring(node)
        functions.append(
            Function(
                name=name,
                path=path,
                line=node.lineno,
                code=_code(lines, node),
                summary=first_paragraph(docstring.value) if docstring else '',
            )
        )
    return functions


def read(roots: Sequence[str | os.PathLike]) -> tuple[list[Function], int]:
    """Reads the functions under some source roots.

    Args:
      roots: folders of modules and packages, as on `sys.path`; a package itself is a root too.

    Returns:
      The functions with unique names, in the order of roots, paths and definitions; and how many files were
      skipped because they could not be read, decoded or parsed.

    Raises:
      InputError: a root is not a folder, or no function was found.
    """
    functions, skipped, seen = [], 0, collections.Counter()
    for root in map(pathlib.Path, roots):
        if not root.is_dir():
            raise InputError(f'--source={root}: not a folder; give a folder of Python sources.')
        root = root.resolve()
        base = root.parent if (root / '__init__.py').exists() else root
        for file in source_files(root):
            path = file.relative_to(base)
            try:
                with tokenize.open(file) as stream:
                    found = parse(stream.read(), module=module_name(path), path=path.as_posix())
            except (OSError, SyntaxError, ValueError):
                skipped += 1
                continue
            for function in found:
                seen[function.name] += 1
                nth = seen[function.name]
                functions.append(function if nth == 1 else function._replace(name=f'{function.name}:{nth}'))
    if not functions:
        raise InputError(f'--source={roots[0]}: no Python function found; give a folder of Python sources.')
    return functions, skipped


def split_queries(functions: Sequence[Function]) -> tuple[list[Query], list[Query]]:
    """The queries, split by a hash of their ids: four fifths to train, one fifth to measure.

    Args:
      functions: the documents, in row order.

    Returns:
      Training queries and dev queries, each in the order of their first function.
    """
    rows_by_text: dict[str, list[int]] = {}
    for row, function in enumerate(functions):
        if len(function.summary.split()) >= _SHORTEST_QUERY:
            rows_by_text.setdefault(function.summary, []).append(row)
    train, dev = [], []
    for text, rows in rows_by_text.items():
        name = functions[rows[0]].name
        drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') % _DEV_SHARE == 0
        (dev if drawn else train).append(Query(id=name, text=text, rows=tuple(rows)))
    return train, dev


class Contents(NamedTuple):
    """What some source roots give.

    Attributes:
      functions: the documents, in row order.
      train, dev: the queries, by split.
      skipped: how many files could not be read or parsed.
    """

    functions: list[Function]
    train: list[Query]
    dev: list[Query]
    skipped: int


def read_contents(roots: Sequence[str | os.PathLike] = ()) -> Contents:
    """Documents and queries of some source roots.

    Args:
      roots: as `read` takes them; the running interpreter's library where none is given.

    Returns:
      Both.

    Raises:
      InputError: as `read`; or too few functions have docstrings to train on some and to measure with others.
    """
    functions, skipped = read(roots or [standard_library()])
    train, dev = split_queries(functions)
    if not train or not dev:
        count = sum(bool(function.summary) for function in functions)
        raise InputError(f'--source: {count} documented functions are too few; give larger sources.')
    return Contents(functions, train, dev, skipped)


class PydocSearch(Collection):
    """The builder `pydoc_search`: documents, train, dev. TFDS keeps it under a digest of what it is made of.

    Args:
      roots: as `read_contents` takes them.
      **kwargs: as TFDS's builders take them, `data_dir`.

    Raises:
      InputError: as `read_contents`.
    """

    DESCRIPTION = 'Docstring to function retrieval over Python sources.'

    def __init__(self, *, roots: Sequence[str | os.PathLike] = (), **kwargs: Any):
        self._contents = read_contents(roots)
        digest = hashlib.sha256(repr(self._contents).encode(errors='replace')).hexdigest()[:16]
        super().__init__(config=tfds.core.BuilderConfig(name=f'functions_{digest}'), **kwargs)

    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The functions, and the first paragraphs of their docstrings."""
        del downloads
        functions, train, dev, _ = self._contents
        documents = (Record(function.name, function.code) for function in functions)
        return {DOCUMENTS: documents} | {
            split: (
                Record(query.id, query.text, relevant=tuple(functions[row].name for row in query.rows))
                for query in queries
            )
            for split, queries in (('train', train), ('dev', dev))
        }
