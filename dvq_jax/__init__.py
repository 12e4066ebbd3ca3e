"""Distill-VQ in JAX: learn an ANN index from a dense retriever, serve it with ScaNN."""
