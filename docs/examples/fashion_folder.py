"""Unpack Fashion-MNIST, as Debian's dataset-fashion-mnist installs it, into a folder of PNGs for each class.

python docs/examples/fashion_folder.py clothes            # the 60,000 training pictures
python docs/examples/fashion_folder.py clothes-test t10k  # the 10,000 others
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from models.training.data import FASHION_LABELS, load_fashion_mnist


def main(folder: Path, split: str = "train") -> None:
    data = load_fashion_mnist(split)
    for name in FASHION_LABELS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (picture, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        Image.fromarray(picture[0].numpy()).save(folder / FASHION_LABELS[label] / f"{number:05d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
