"""Log-determinants of I + R R^T, by the cheaper side, in float64.

Notation: R has one row per index pair of a block and one column per parameter; everything that is squared or factorised
is float64 even where R is float32, because a float32 Gram matrix loses the small eigenvalues at prior precision 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ntkml.machine.devices import suited

#: Float64 entries of one tile of rows, but at least as many columns as follow. On a CPU (2 MiB) it is used again and again
#: while a core's cache holds it: at 8 x 590 000 and 64 x 590 000 a Gram took 5 and 97 ms so, 20 and 201 ms with tiles of
#: 64 MiB. On a GPU (512 MiB) every tile is a launch, and a small one leaves most of it idle.
_TILE_ENTRIES = {"cpu": 2**18, "cuda": 2**26}
_TILE_COLUMNS = 1024

#: Rows of a tile on the diagonal of a Gram matrix: wide enough for full speed, narrow enough to leave out the upper half.
#: At 1000 x 1152 on one thread tiles of 128, 256, 512 and 1024 rows took 42, 48, 59 and 77 ms; at 3000 rows 256 was best.
_TILE_ROWS = {"cpu": 256, "cuda": 4096}

#: Float64 entries of one tile of vectors at many positions (512 KiB): it is made and used within a core's cache.
_MOMENT_ENTRIES = 2**16

#: Least groups of channels that are multiplied together: fewer and larger ones fill a core's cache alone.
_GROUPS_TOGETHER = 4

#: Nats that a log-determinant from eigenvalues may be wrong by.
SPECTRUM_ERROR = 1e-5

#: Nats that rounding may move a log-determinant from a Cholesky factorisation by, about.
CHOLESKY_ERROR = 0.03


class NotPositiveDefiniteError(ValueError):
    """A matrix I + K that theory says is positive definite was not, numerically; nothing is added to hide it."""


def gram(*parts: Tensor) -> Tensor:
    """R R^T in float64 by tiles: R is never copied whole, and only tiles on or below the diagonal are multiplied.

    parts: the rows of R from top to bottom, (b_i, P) each, float32 or float64. Returns (b, b).
    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        rows = torch.cat(parts).double()  # a graph keeps the copy: a tile that is used again would destroy it
        return _symmetric(rows @ rows.T)
    num_rows, num_columns = sum(len(part) for part in parts), parts[0].shape[1]
    width, height = min(num_columns, _tile_columns(parts[0], num_rows)), suited(_TILE_ROWS, parts[0].device)
    total = parts[0].new_zeros(num_rows, num_rows, dtype=torch.float64)
    tile = parts[0].new_empty(num_rows, width, dtype=torch.float64)
    for start in range(0, num_columns, max(1, width)):
        columns = tile[:, : num_columns - start]
        for part, place in zip(parts, columns.split([len(part) for part in parts]), strict=True):
            place.copy_(part[:, start : start + width])
        for i in range(0, num_rows, height):
            own = slice(i, i + height)
            total[own, : i + height].addmm_(columns[own], columns[: i + height].T)
    for i in range(0, num_rows, height):
        own = slice(i, i + height)
        total[:i, own] = total[own, :i].T
        total[own, own] = _symmetric(total[own, own])
    return total


def _tile_columns(rows: Tensor, num_rows: int) -> int:
    return max(_TILE_COLUMNS, suited(_TILE_ENTRIES, rows.device) // max(1, num_rows))


def _symmetric(square: Tensor) -> Tensor:
    """The lower half on both sides: a product of a matrix with itself need not round its two halves alike."""
    return square.tril() + square.tril(-1).T


def left_product(matrix: Tensor, rows: Tensor, divisor: Tensor) -> Tensor:
    """A R / d, multiplied in float64 by tiles of columns and kept in the dtype of R.

    matrix: (b, b) float64; rows: (b, P); divisor: a scalar or (P,). Returns (b, P).
    """
    num_rows, num_columns = rows.shape
    product = torch.empty_like(rows)
    width = _tile_columns(rows, num_rows)
    for start in range(0, num_columns, width):
        columns = slice(start, start + width)
        tile = matrix @ rows[:, columns].double()
        product[:, columns] = tile.div_(divisor[columns] if divisor.ndim else divisor)
    return product


def scatter(vectors: Tensor) -> Tensor:
    """sum over n and t of v v^T in float64. vectors: (n, m, T). Returns (m, m).

    Short vectors at many positions are multiplied input by input where they lie: a Gram matrix of them side by side would
    first copy all of them (4.0 against 7.0 ms for (100, 25, 576), 7.8 against 29 ms for (900, 8, 576)).
    """
    num_inputs, size, positions = vectors.shape
    if positions < size:
        return gram(vectors.transpose(0, 1).flatten(1))
    total = torch.zeros(size, size, dtype=torch.float64, device=vectors.device)
    step = max(1, _MOMENT_ENTRIES // (size * positions)) if vectors.device.type == "cpu" else num_inputs
    for start in range(0, num_inputs, step):
        tile = vectors[start : start + step].double()
        total += (tile @ tile.transpose(1, 2)).sum(0)
    return (total + total.T) / 2  # a product need not round its two halves alike


def scatters(vectors: Tensor) -> Tensor:
    """:func:`scatter` of every group of channels. vectors: (n, q, m, T). Returns (q, m, m).

    Small groups, of which a depthwise convolution has hundreds, are multiplied some at a time: one by one 960 of them took 22 to
    46 ms for (32, 960, 1 or 9, 1), and take 1.
    """
    num_inputs, _, size, positions = vectors.shape
    together = suited(_TILE_ENTRIES, vectors.device) // max(1, num_inputs * size * positions)
    if together < _GROUPS_TOGETHER:
        return torch.stack([scatter(group) for group in vectors.unbind(1)])
    tiles = (
        tile.permute(1, 2, 0, 3).flatten(2).double() for tile in vectors.split(together, dim=1)
    )  # (groups, m, n T)
    total = torch.cat([tile @ tile.mT for tile in tiles])
    return (total + total.mT) / 2  # a product need not round its two halves alike


def channel_gram(rows: Tensor) -> Tensor | None:
    """R R^T in float64 for rows whose outputs are few directions in every channel, or None where they are not.

    Behind the last hidden layer only an elementwise function and the output weights W follow, so its rows are
    J[n, c, o] = W[c, o] B[n, o]: over the outputs c every channel o has rank one, and one N x N Gram of B per channel
    replaces an (N C) x (N C) one. The rank is found from the rows themselves; what is dropped lies below their rounding.

    Args:
        rows: (N, C, o, d).

    Returns:
        (N C, N C), or None if a channel has a higher rank than one.
    """
    num_inputs, num_outputs, num_channels, _ = rows.shape
    if not bool(torch.isfinite(rows).all()):
        return None  # whoever factorises the Gram says so by name; eigh would fail without a word
    tolerance = 16 * torch.finfo(rows.dtype).eps
    # In place: what many small matrices leave behind in the C library's heap is twice as large as they are.
    stacked = rows.new_empty(num_channels, num_inputs, num_inputs, dtype=torch.float64)
    directions = []
    for channel in range(num_channels):
        unfolded = rows[:, :, channel].transpose(0, 1).flatten(1).double()  # (C, N d)
        direction = _eigh(unfolded @ unfolded.T, "a channel's outputs")[1][:, -1]  # the leading one
        base = direction @ unfolded
        if not bool((unfolded - torch.outer(direction, base)).norm() <= tolerance * unfolded.norm()):
            return None
        base = base.reshape(num_inputs, -1)
        torch.mm(base, base.T, out=stacked[channel])
        directions.append(torch.outer(direction, direction).flatten())
    weights = torch.stack(directions).reshape(num_channels, num_outputs, num_outputs)
    total = stacked.new_empty(num_inputs, num_outputs, num_inputs, num_outputs)
    for output in range(num_outputs):  # one at a time: all of them would be a second matrix of the result's size
        products = weights[:, output].T @ stacked.flatten(1)  # (C, N N)
        total[:, output] = products.reshape(num_outputs, num_inputs, num_inputs).permute(1, 2, 0)
    return total.reshape(num_inputs * num_outputs, num_inputs * num_outputs)


def log_det_identity_plus(
    matrix: Tensor, where: str, precision: Tensor | float = 1.0, overwrite: bool = False
) -> Tensor:
    """log|I + K / delta| of a symmetric positive semi-definite K, by one Cholesky factorisation. matrix: (b, b).

    ``overwrite``: K, at delta = 1, is nobody's any more and becomes I + K.

    Raises:
        NotPositiveDefiniteError: the factorisation failed, or rounding left no value; ``where`` names block, structure and prior.
    """
    shifted = matrix if overwrite else matrix / precision
    shifted.detach().diagonal().add_(1.0)  # a constant: no step of its own for autograd, which would copy the gradient
    log_det: Tensor = _LogDet.apply(shifted, where)
    return log_det


class _LogDet(torch.autograd.Function):
    """log|A| of a positive definite A with the gradient A^-1 from the same factorisation.

    Autograd's own route through the factor multiplies and solves with it several times more.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, where: str) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) > 0 or not _is_resolved(matrix, factor):
            raise NotPositiveDefiniteError(
                f"I + K of {where} is not positive definite in {matrix.dtype}: the rows hold NaN or infinite values, or "
                "the prior precision is too small for them; check the data and weights, or raise the prior precision"
            )
        ctx.save_for_backward(matrix, factor)
        return 2.0 * factor.diagonal().log().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        matrix, factor = ctx.saved_tensors
        # A second derivative has to find its way back to the matrix, which the saved factor does not know.
        if torch.is_grad_enabled():
            return gradient * torch.linalg.inv(matrix), None
        return torch.cholesky_inverse(factor).mul_(gradient), None


def _is_resolved(matrix: Tensor, factor: Tensor) -> bool:
    """Whether the log-determinant of A = I + K from its Cholesky factor is right to about :data:`CHOLESKY_ERROR`. False for NaN.

    Where a row adds nothing to those before it, a squared pivot is 1 plus the rounding of a huge K / delta: the factorisation fails
    where that is below zero, and takes for a pivot whatever is above. Every entry is wrong by about eps times the root of both
    diagonal ones, and so the log-determinant by about eps sum_j a_jj (A^-1)_jj. Without rounding no (A^-1)_jj exceeds 1.
    """
    diagonal, eps = matrix.diagonal(), torch.finfo(matrix.dtype).eps
    if bool(torch.isfinite(factor.diagonal()).all() & (eps * diagonal.sum() < CHOLESKY_ERROR)):
        return True
    return bool(eps * (diagonal @ torch.cholesky_inverse(factor).diagonal()) < CHOLESKY_ERROR)


def cholesky(matrix: Tensor) -> Tensor:
    """The factor of a positive definite matrix, for adjoints. matrix: (b, b).

    Raises:
        NotPositiveDefiniteError: it is not, numerically.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) > 0:
        raise NotPositiveDefiniteError(
            f"a matrix of {len(matrix)} rows is not positive definite in {matrix.dtype} when its gradient is taken: the prior precision "
            "is too small for the rows; raise it"
        )
    return factor


def log_det_row_gradient(rows: Tensor, precision: Tensor) -> Tensor:
    """Gradient of log|I + R P0^-1 R^T| in R: 2 (I + R P0^-1 R^T)^-1 R P0^-1 = 2 R (P0 + R^T R)^-1, by the smaller side.

    rows: (b, P); precision: a scalar or (P,). Returns (b, P) in float64.
    """
    num_rows, num_columns = rows.shape
    exact = rows.double()
    if num_rows <= num_columns:
        scaled = exact / precision
        kernel = scaled @ exact.T
        kernel.diagonal().add_(1.0)
        return 2.0 * torch.cholesky_solve(scaled, cholesky(kernel))
    matrix = exact.T @ exact
    matrix.diagonal().add_(precision)
    return 2.0 * torch.cholesky_solve(exact.T, cholesky(matrix)).T


def log_det_from_spectrum(eigenvalues: Tensor, precision: Tensor) -> Tensor:
    """log|I + K / delta| = sum log(1 + lambda / delta) from the eigenvalues of K. Scalar, differentiable in delta."""
    return (eigenvalues / precision).log1p().sum()


def resolves(eigenvalues: Tensor, precision: Tensor) -> bool:
    """Whether :func:`log_det_from_spectrum` is right to about :data:`SPECTRUM_ERROR` at this precision, a scalar.

    A Cholesky factorisation loses less there, and fails where nothing can be said. False for a precision of NaN.
    """
    return bool(spectrum_error(eigenvalues, precision) < SPECTRUM_ERROR)


def spectrum_error(eigenvalues: Tensor, precision: Tensor) -> Tensor:
    """What :func:`log_det_from_spectrum` may be wrong by, in nats, from b eigenvalues (b,), of which there may be none. Scalar.

    They are wrong by up to eps times the largest, and where they should be zero only the positive errors are left.
    """
    if not len(eigenvalues):
        return torch.zeros_like(precision)
    return len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax() / precision


def spectrum(matrix: Tensor, where: str) -> Tensor:
    """Eigenvalues of symmetric positive semi-definite matrices, rounding below zero clipped. (..., b, b) -> (..., b).

    Raises:
        NotPositiveDefiniteError: a matrix holds NaN or infinite values, or no eigenvalues are found.
    """
    finite = _finite(matrix, where)
    try:
        eigenvalues: Tensor = torch.linalg.eigvalsh(finite)
    except torch.linalg.LinAlgError:
        eigenvalues = _named(torch.linalg.svdvals, finite, where).flip(-1)
    return eigenvalues.clamp_min(0.0)


def eigensystem(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """What :func:`spectrum` returns, and the eigenvectors (..., b, b), one in each column."""
    eigenvalues, eigenvectors = _eigh(_finite(matrix, where), where)
    return eigenvalues.clamp_min(0.0), eigenvectors


def _eigh(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of finite symmetric positive semi-definite matrices (..., b, b).

    Divide and conquer was seen to give up on one in a hundred second moments of patches that are mostly padding (1024 of 1152
    rows zero); the singular value decomposition of such a matrix is the same.
    """
    try:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        left, singular, _ = _named(torch.linalg.svd, matrix, where)
        return singular.flip(-1), left.flip(-1)
    return eigenvalues, eigenvectors


def _named(decompose: Callable[[Tensor], Any], matrix: Tensor, where: str) -> Any:
    try:
        return decompose(matrix)
    except torch.linalg.LinAlgError as error:
        raise NotPositiveDefiniteError(f"no eigenvalues of {where} were found: {error}") from None


def _finite(matrix: Tensor, where: str) -> Tensor:
    if not bool(torch.isfinite(matrix.sum())):  # the sum of what is not finite is not; entry by entry takes a copy
        raise NotPositiveDefiniteError(f"the rows of {where} hold NaN or infinite values; check the data and weights")
    return matrix
