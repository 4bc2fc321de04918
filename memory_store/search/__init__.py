"""Search: full text, vectors, fusion, coarse-to-fine recall, near-duplicates."""
