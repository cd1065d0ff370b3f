"""Search in a table of embeddings: what looks alike, what moves alike, and which videos are almost the same.

- `space.py` makes unit vectors of a table by appearance, by motion or by both, and finds the nearest exactly
- `approximate.py` finds them in an index, for tables of millions
- `found.py` is what a search found, as it is shown
- `duplicates.py` groups videos that are almost the same
"""
