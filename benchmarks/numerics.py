"""Two sources of error that truenorm works around, measured for the active Keras backend.

    KERAS_BACKEND=tensorflow python benchmarks/numerics.py

1. The sum down each column of an (n, 64) array of normal float32 numbers: as one sum of the
   framework, and in two sums of about sqrt(n) each, one after the other. The error is in units
   of the L2 norm of the terms; truenorm promises 4e-6 for the gradients of gamma and beta.
2. The gradient dx of layer normalization (width 20, mean 1e4, sd 1, 4096 rows), all in float64
   but for the mean: rounded to float32, or in two float32 parts. In units of the largest |dy|
   over the standard deviation of its row; truenorm promises 4e-6. The same on every backend.
"""

import argparse

import numpy as np

LENGTHS = (2**10, 2**14, 2**18, 2**20)
COLUMNS = 64


def column_sums(length: int) -> tuple[float, float]:
    """The largest errors of the sums of the columns: in one go, and in two."""
    from keras import ops

    terms = np.random.default_rng(0).standard_normal((length, COLUMNS)).astype("float32")
    exact = terms.sum(0, dtype="float64")
    scale = np.sqrt(np.square(terms, dtype="float64").sum(0))
    block = 2 ** (length.bit_length() // 2)
    pieces = terms.reshape(length // block, block, COLUMNS)
    one = ops.convert_to_numpy(ops.sum(ops.convert_to_tensor(terms), axis=0))
    two = ops.convert_to_numpy(ops.sum(ops.sum(ops.convert_to_tensor(pieces), axis=1), axis=0))

    def error(found: np.ndarray) -> float:
        return float((np.abs(found - exact) / scale).max())

    return error(one), error(two)


def mean_in_one_or_two_parts() -> tuple[float, float]:
    """The largest errors of dx with the mean rounded to float32, and with the rest kept."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((4096, 20))).astype("float32").astype("float64")
    dy = rng.standard_normal(x.shape)
    mean = x.mean(1, keepdims=True)
    high = mean.astype("float32").astype("float64")
    low = (mean - high).astype("float32").astype("float64")
    rstd = 1 / x.std(1, keepdims=True)

    def gradient(centre: np.ndarray) -> np.ndarray:
        xhat = (x - centre) * rstd
        projection = dy.mean(1, keepdims=True) + xhat * (dy * xhat).mean(1, keepdims=True)
        return np.asarray(rstd * (dy - projection))

    def error(centre: np.ndarray) -> float:
        return float((np.abs(gradient(centre) - gradient(mean)) / unit).max())

    unit = np.abs(dy).max(1, keepdims=True) * rstd
    return error(high), error(high + low)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    import keras

    print(f"\n| {keras.backend.backend()}: column of | one sum | two sums |\n|---|---|---|")
    for length in LENGTHS:
        one, two = column_sums(length)
        print(f"| {length:,} | {one:.0e} | {two:.0e} |")
    one, two = mean_in_one_or_two_parts()
    print(f"\ndx with the mean as one float32 {one:.0e}, as two {two:.0e}")


if __name__ == "__main__":
    main()
