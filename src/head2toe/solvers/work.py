"""What solvers cost: floating point operations, told by the places that multiply matrices while they run.

A multiplication and an addition are two operations, as in torch's FlopCounterMode, and like there only products count:
what is done once per number (exponentials, sums, a line search) is not. Two costs are bounds: an eigendecomposition is
9 n^3 (Golub and Van Loan, section 8.3), and a sweep of coordinate descent counts as if every row had moved.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LOCK = threading.Lock()
_OPEN: list[Work] = []


@dataclass(eq=False)
class Work:
    """Floating point operations so far."""

    flops: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Count what every thread of this process multiplies inside; contexts may be nested.

    >>> with counted() as work:
    ...     product((2, 3), 4)
    >>> work.flops
    48
    """
    work = Work()
    with _LOCK:
        _OPEN.append(work)
    try:
        yield work
    finally:
        with _LOCK:
            _OPEN.remove(work)


def product(shape: tuple[int, ...], n: int) -> None:
    """Tell of a product of a matrix of that shape, or its transpose, with one that has or gives `n` columns."""
    _spent(2 * math.prod(shape) * n)


def eigendecomposition(n: int) -> None:
    """Tell of all eigenvalues and eigenvectors of a symmetric (n, n) matrix."""
    _spent(9 * n**3)


def _spent(flops: int) -> None:
    if _OPEN:
        with _LOCK:
            for work in _OPEN:
                work.flops += flops
