"""Writes a trained index for a search engine, and opens it again: one file an engine.

Whatever the engine, an index folder carries beside the engine's own files

- `ids.txt`: the documents' ids (`ids`),
- `query_transform.npz`: what is done to a query before the search (`transform`),
- `manifest.json`: where the index comes from, its shapes, and the checksum of every file (`manifest`).

Nothing in the folder is a program or a pickle: opening one from somebody else executes nothing.
"""
