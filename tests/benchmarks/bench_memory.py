"""Peak memory of a training when its set grows tenfold: `python tests/benchmarks/bench_memory.py`, or `make bench`.

Each training is a process of its own: 241002_3_GAP at 256, batch 32, one epoch, over one shard of random images and
over ten. Prints a table.
"""

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from tests.benchmarks.measure import ROOT, measure

TRAINING = ROOT / "single_pulse_classifier_training" / "training.py"
IMAGES_PER_SHARD = 1500
SHARDS = (1, 10)


def train(folder: Path, n_shards: int) -> float:
    """Peak resident memory of a training over the first shards, MB."""
    config = {
        "path_to_files": "./",
        "resolution": 256,
        "model_name": "DM_time_binary_classificator_241002_3_GAP",
        "files_by_resolution": {"256": [f"images_{shard}.npy" for shard in range(n_shards)]},
        "labels": [f"labels_{shard}.npy" for shard in range(n_shards)],
        "num_epochs": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return measure([sys.executable, str(TRAINING), str(folder / "config.json")]).peak_mb


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in range(max(SHARDS)):
            np.save(folder / f"images_{shard}.npy", random.integers(0, 256, (IMAGES_PER_SHARD, 256, 256), np.uint8))
            np.save(folder / f"labels_{shard}.npy", np.arange(IMAGES_PER_SHARD) % 2)
        peaks = [train(folder, n_shards) for n_shards in SHARDS]
    print("| images of 256 x 256 | on disk, MB | peak memory of training, MB | ratio |")
    print("|---|---|---|---|")
    for n_shards, peak in zip(SHARDS, peaks):
        n_images = n_shards * IMAGES_PER_SHARD
        print(f"| {n_images} | {n_images * 65536 / 1e6:.0f} | {peak:.0f} | {peak / peaks[0]:.2f} |")


if __name__ == "__main__":
    main()
