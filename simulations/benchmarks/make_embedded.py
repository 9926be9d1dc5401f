"""Make the pictures that fedsprig ships: a slice of Fashion-MNIST and scikit-learn's digits.

    python simulations/benchmarks/make_embedded.py FASHION_FOLDER OUT_FOLDER

``FASHION_FOLDER`` holds the four ``*-ubyte.gz`` files of Fashion-MNIST, as Debian's package
dataset-fashion-mnist installs them. scikit-learn must be importable. Nothing is drawn at random:
the slice is the first 500 pictures of each class of the training set and the first 200 of each
class of the test set, in their original order. The digits' test part is the last 50 of each class;
their pixels (0 to 16) are spread over 0 to 255, which loses nothing. The same input gives the same
files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np

TRAIN_PER_CLASS, TEST_PER_CLASS, DIGITS_TEST_PER_CLASS = 500, 200, 50
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST: two zeros, type 8, its rank, sizes, values."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=rank, offset=4).astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first ``count`` members of every class, ascending."""
    per_class = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(per_class))


def fashion(folder: Path) -> dict[str, np.ndarray]:
    """The slice of Fashion-MNIST."""
    arrays = {"classes": np.array(FASHION_CLASSES)}
    for split, prefix, count in (
        ("train", "train", TRAIN_PER_CLASS),
        ("test", "t10k", TEST_PER_CLASS),
    ):
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = first_of_each(labels, count)
        arrays[f"x_{split}"] = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[chosen]
        arrays[f"y_{split}"] = labels[chosen]
    return arrays


def digits() -> dict[str, np.ndarray]:
    """The digits, divided."""
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = source.target.astype(np.uint8)
    levels = source.images.astype(np.uint16)
    pixels = ((levels * 255 + 8) // 16).astype(np.uint8)
    backwards = first_of_each(labels[::-1], DIGITS_TEST_PER_CLASS)
    test = np.zeros(len(labels), dtype=bool)
    test[len(labels) - 1 - backwards] = True
    return {
        "classes": np.array([str(digit) for digit in range(10)]),
        "x_train": pixels[~test],
        "y_train": labels[~test],
        "x_test": pixels[test],
        "y_test": labels[test],
    }


def main() -> None:
    """Write both archives and print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fashion", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, arrays in (("fashion", fashion(args.fashion)), ("digits", digits())):
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        blob = path.read_bytes()
        described = {
            "file": path.name,
            "bytes": len(blob),
            "sha256": hashlib.sha256(blob).hexdigest(),
            "shapes": {key: list(array.shape) for key, array in arrays.items()},
        }
        print(json.dumps(described))


if __name__ == "__main__":
    main()
