"""Arrays that a user gave, checked: nothing is dropped in silence on the way to plain floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from propagate.checks import LARGEST, SMALLEST, ModelError, as_array, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDING = 1e-12  # of a matrix that is symmetric but for rounding, relative to its largest entry


def real_array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The value as floats.

    Raises:
        ModelError: unless it is an array of real, finite numbers of this shape, without a mask.

    Example: imaginary parts are not dropped.
        >>> real_array("gram", [[1j]], (1, 1))
        Traceback (most recent call last):
        propagate.checks.ModelError: gram must be an array of real numbers, got entries of type complex128
    """
    import numpy as np

    try:
        array = as_array(value)
    except Exception:  # rows of unequal length, or whatever the conversion of somebody else's array raises
        raise ModelError(
            f"{name} must be an array of real numbers of shape {shape}, got {type(value).__name__}"
        ) from None
    if isinstance(array, np.ma.MaskedArray):
        raise ModelError(f"{name} must be an array of numbers without a mask, got a masked array")
    array = np.asarray(array)
    if array.dtype.kind not in "iuf":
        raise ModelError(f"{name} must be an array of real numbers, got entries of type {array.dtype}")
    if array.shape != shape:
        raise ModelError(f"{name} must have shape {shape}, got {array.shape}")
    floats = array.astype(float)
    if not np.isfinite(floats).all():
        raise ModelError(f"{name} must be finite")
    return floats


def second_moments(name: str, value: Any, tokens: int, *, positive: bool) -> NDArray[np.float64]:
    """A (tokens, tokens) matrix of second moments, exactly symmetric.

    Args:
        name: for the error.
        value: what was given.
        tokens: rows and columns.
        positive: whether every token must have some variance, for a norm would divide by zero.

    Raises:
        ModelError: unless it is one: symmetric but for rounding, positive semi-definite, of a size that can be squared.

    Example:
        >>> second_moments("gram", [[0.0, 0.0], [0.0, 1.0]], 2, positive=True)
        Traceback (most recent call last):
        propagate.checks.ModelError: gram must have a positive diagonal: a norm would divide by zero at token 0
    """
    import numpy as np

    matrix = real_array(name, value, (tokens, tokens))
    largest = float(np.abs(matrix).max())
    if largest > LARGEST or 0 < largest < SMALLEST:
        raise ModelError(
            f"{name} must have entries between {SMALLEST:g} and {LARGEST:g}, got {largest:g} as the largest"
        )
    apart = np.abs(matrix - matrix.T)
    if apart.max() > ROUNDING * largest:
        t, s = sorted(map(int, np.unravel_index(apart.argmax(), apart.shape)))
        raise ModelError(
            f"{name} must be symmetric and positive semi-definite, got entries [{t}, {s}] and [{s}, {t}] that differ by"
            f" {apart.max():.3g}: ({name} + {name}.T) / 2 is symmetric"
        )
    if positive and not (matrix.diagonal() > 0).all():
        token = int(matrix.diagonal().argmin())
        raise ModelError(f"{name} must have a positive diagonal: a norm would divide by zero at token {token}")
    least = matrix.diagonal()[matrix.diagonal() != 0].min(initial=largest)
    if 0 < least < SMALLEST:
        raise ModelError(
            f"{name} must have entries between {SMALLEST:g} and {LARGEST:g}, got {least:g} on its diagonal"
        )
    symmetric = (matrix + matrix.T) / 2
    if np.linalg.eigvalsh(symmetric / largest if largest else symmetric)[0] < -1e-9 * tokens:
        raise ModelError(f"{name} must be symmetric and positive semi-definite, got a negative eigenvalue")
    return np.asarray(symmetric)


def moment(name: str, value: Any, *, positive: bool = False) -> float:
    """A number that may have either sign, unless it must be positive.

    Raises:
        ModelError: unless it is real, finite, and 0 or of a size that can be squared.

    Example:
        >>> moment("variance", True, positive=True)
        Traceback (most recent call last):
        propagate.checks.ModelError: variance must be a finite number, got True
    """
    import numpy as np

    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ModelError(f"{name} must be a finite number, got {shown(value)}")
    try:
        plain = float(value)
    except OverflowError:
        plain = np.inf
    if not np.isfinite(plain):
        raise ModelError(f"{name} must be a finite number, got {shown(value)}")
    if positive and plain <= 0:
        raise ModelError(f"{name} must be positive, got {shown(value)}")
    if positive:  # a covariance may be as small as it likes beside a variance
        check_size(name, plain)
    return plain


def check_size(name: str, value: Any) -> None:
    """ModelError where a number, or one of an array, is so large or small that its square is lost.

    Example:
        >>> check_size("variance", 1e-200)
        Traceback (most recent call last):
        propagate.checks.ModelError: variance must be 0 or of a size between 1e-100 and 1e+100, got 1e-200
    """
    import numpy as np

    size = np.abs(np.asarray(value, dtype=float))
    wrong = size[((size != 0) & (size < SMALLEST)) | (size > LARGEST)]
    if wrong.size:
        raise ModelError(f"{name} must be 0 or of a size between {SMALLEST:g} and {LARGEST:g}, got {wrong[0]:g}")
