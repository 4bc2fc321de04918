"""Search over an open store: both parts joined, the vector spaces kept true, coarse-to-fine recall."""
