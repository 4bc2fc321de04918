"""What a model returned is checked before anything is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_store.errors import DimensionMismatchError, EmbedderError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from memory_store.embedders.base import Float32Array

__all__ = ["check_vectors", "finite_rows"]


def check_vectors(model_name: str, returned: ArrayLike, count: int, dimensions: int | None) -> Float32Array:
    """Return what a model returned for some texts as a float32 array (count, d).

    Args:
        model_name: the model, for the message.
        returned: what it returned.
        count: texts it was given.
        dimensions: numbers a vector of this model has; None where that is not known yet.

    Raises:
        EmbedderError: it is no array of numbers (count, d). A retry would return the same.
        DimensionMismatchError: its vectors have another size.
    """
    import numpy as np

    try:
        array = np.asarray(returned)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise EmbedderError(f"model {model_name!r} returned no array of vectors: {error}") from error
    if array.dtype.kind not in "fiu":
        raise EmbedderError(f"model {model_name!r} returned {array.dtype} values, not numbers")
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] == 0:
        raise EmbedderError(f"model {model_name!r} returned shape {array.shape} for {count} texts, not ({count}, d)")
    if dimensions is not None and array.shape[1] != dimensions:
        raise DimensionMismatchError(
            f"model {model_name!r} returned vectors of {array.shape[1]} numbers, its vectors have {dimensions}",
            expected=dimensions,
            actual=array.shape[1],
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which `finite_rows` finds
        return array.astype(np.float32, copy=False)


def finite_rows(model_name: str, vectors: Float32Array) -> list[Float32Array | EmbedderError]:
    """Return each vector as an array of its own, and an error in the place of one whose numbers are not finite."""
    import numpy as np

    finite = np.logical_and.reduce(np.isfinite(vectors), axis=1)
    problem = f"model {model_name!r} returned a vector with numbers that are not finite, or too large for float32"
    # Copies, since a view would keep the whole array in memory.
    return [vector.copy() if fine else EmbedderError(problem) for vector, fine in zip(vectors, finite, strict=True)]
