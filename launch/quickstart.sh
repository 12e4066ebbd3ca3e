#!/usr/bin/env bash
# Search the Python standard library: embeds its functions, trains an index, serves it with ScaNN, asks it.
# usage: bash launch/quickstart.sh [FOLDER]
set -euo pipefail
out=$(realpath -m "${1:-quickstart}")
. "$(dirname "$0")/environment.sh" quickstart

run() {  # prints the command; its result, one JSON line, goes to stdout
  echo "+ python -m dvq_jax.cli.$*" >&2
  python -m "dvq_jax.cli.$@"
}

if [ -e "$out" ] && [ ! -e "$out/.quickstart" ] && [ -n "$(ls -A "$out" 2>/dev/null || echo file)" ]; then
  echo "error: $out exists and is not an earlier quickstart; give another folder." >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.quickstart"

# Documents are functions without their docstrings, queries are docstrings' first paragraphs.
run pydoc_search --out="$out/data"
dev=(--queries="$out/data/dev_queries.npy" --query_ids="$out/data/dev_queries.tsv" --qrels="$out/data/dev_qrels.txt")

run prepare --corpus="$out/data/docs.npy" --corpus_ids="$out/data/docs.tsv" \
  --queries="$out/data/train_queries.npy" --query_ids="$out/data/train_queries.tsv" \
  --qrels="$out/data/train_qrels.txt" --topk=200 --out="$out/dataset"
# What an index is without training: k-means, OPQ, nearest lists and codewords.
run train --config=configs/distill_vq.py --config.data.dataset="$out/dataset" --workdir="$out/plain" \
  --config.index.lists=128 --config.index.codebooks=32 --config.train.steps=0
run train --config=configs/quickstart.py --config.data.dataset="$out/dataset" --workdir="$out/run"
run evaluate --workdir="$out/run" --step=best "${dev[@]}" --nprobe=1,10,128

for name in plain run; do
  run export --workdir="$out/$name" --step=best --format=scann --out="$out/index-$name"
  run search --index="$out/index-$name" "${dev[@]}" --k=100 --nprobe=10 --out="$out/$name.trec" |
    tee "$out/search-$name.json"
done

run ask --index="$out/index-run" --data="$out/data" | head -n -1
echo
echo "Held-out queries, 10 of 128 lists probed, the index served by ScaNN:"
run compare --result="dense teacher=$out/data/dense.json" \
  --result="IVF + OPQ=$out/search-plain.json" \
  --result="trained index=$out/search-run.json" | head -n -1

echo
echo "Ask your own:"
echo "  .venv/bin/python -m dvq_jax.cli.ask --index=$out/index-run --data=$out/data --question='how do I ...'"
