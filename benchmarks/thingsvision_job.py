"""The job of `benchmarks/extract.py` done with thingsvision, in an environment of its own: it wants numpy < 2.

uv venv OTHER && uv pip install --python OTHER/bin/python thingsvision
python benchmarks/extract.py ... --thingsvision OTHER/bin/python

Every image of a folder goes once through an architecture of timm with random weights (speed does not ask for better);
the activations that thingsvision keeps are pooled after each pass and written as float16. Prints images a second, from
the first file read to the last number on disk.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset[torch.Tensor]):
    """The pictures of a folder as (3, size, size) float32."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.iterdir()), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        pixels = Image.open(self.paths[row]).convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 127.5 - 1


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--architecture", required=True)
    options.add_argument("--model-args", type=json.loads, default={})
    options.add_argument("--modules", nargs="+", required=True)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--precision", default="bfloat16")
    options.add_argument("--target-size", type=int, default=512)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--threads", type=int, default=2)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    network = timm.create_model(options.architecture, **options.model_args).eval().to(memory_format=torch.channels_last)
    things = importlib.import_module("thingsvision")  # by name: it is not in the environment that types are checked in
    extractor = things.get_extractor_from_model(model=network, device="cpu", backend="pt")
    pictures = Pictures(options.folder, options.size)
    loader = DataLoader(pictures, options.batch_size, num_workers=options.workers)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16")
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        with extractor.batch_extraction(module_names=options.modules, output_type="tensor") as reading, autocast:
            for number, batch in enumerate(loader):
                kept = reading.extract_batch(batch.to(memory_format=torch.channels_last), flatten_acts=False)
                blocks = [pooled(output.float(), options.target_size).half().numpy() for output in kept.values()]
                np.save(Path(out) / f"{number}.npy", np.concatenate(blocks, axis=1))
        print(len(pictures) / (time.perf_counter() - start))


def pooled(output: torch.Tensor, target: int) -> torch.Tensor:
    """Maps (n, ch, H, W) to about `target` window means, vectors as they are."""
    if output.ndim != 4:
        return output.flatten(1)
    cells = math.isqrt(target // output.shape[1]) if target >= output.shape[1] else 1
    window = max(1, output.shape[3] // cells)
    return avg_pool2d(output, window, window).flatten(1)


if __name__ == "__main__":
    main()
