"""The shapes that everything else speaks of.

| letter | meaning |
|---|---|
| N, Q, D | documents, queries, embedding dimension |
| L | coarse centroids = IVF lists = ScaNN leaves |
| M, K, S | codebooks, codewords per codebook, sub-dimension D/M |
| B, C | queries per global batch, candidate documents per query |
| P | lists probed at search (nprobe, leaves_to_search) |

Scores are inner products, larger is better. Embeddings are in the caller's space; centroids and codebooks
live in the rotated space, x ↦ x·R. A name's suffix gives an array's axes where they could be confused:
`codes_nm` is [N, M], `scores_bc` is [B, C].
"""

from typing import Any

import flax.struct
import jax

Array = jax.Array


@flax.struct.dataclass
class IndexParams:
    """The learned parameters of an IVF-PQ index.

    Attributes:
      centroids: [L, D] float32, the coarse centroids, in the rotated space.
      codebooks: [M, K, S] float32, the product quantizer's codewords for residuals, in the rotated space.
      rotation: [D, D] float32, orthogonal; the identity when unused.
    """

    centroids: Array
    codebooks: Array
    rotation: Array


@flax.struct.dataclass
class Encoding:
    """Documents as the index stores them, each in `copies` lists: entry e is document e mod N.

    Attributes:
      lists: [copies·N] int32, the IVF list of each entry.
      codes: [copies·N, M] uint8, the codeword chosen in each codebook.
      copies: how many lists a document is in.
    """

    lists: Array
    codes: Array
    copies: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def documents(self) -> int:
        """N."""
        return len(self.lists) // self.copies


@flax.struct.dataclass
class Batch:
    """One device's share of a training batch: b queries and n documents.

    In-batch these are a share of the global batch's distinct documents, see `candidates.distinct`; else they
    are what the device's queries bring, C each, one query's after the other.

    Attributes:
      queries: [b, D] float32, the teacher's query embeddings.
      doc_ids: [n] int32, rows of the corpus; -1 pads.
      docs: [n, D] float32, the teacher's document embeddings; zeros where padded. None until they are
        brought, where the corpus is on the devices.
      lists: [n] int32, the documents' frozen IVF lists; any where padded.
      positives: [b, G] int32, the relevant documents of each query, rows of the corpus; -1 pads.
      tokens: [b, T] int32, the queries' texts, where the tower reads them; -1 pads.
    """

    queries: Any
    doc_ids: Any
    docs: Any
    lists: Any
    positives: Any
    tokens: Any = None
