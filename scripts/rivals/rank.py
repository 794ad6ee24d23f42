"""One process of a measurement, as `compare.py` starts it: `rank.py FILE`, with a pickled task."""

import importlib
import pickle
import sys
import time
from pathlib import Path

import torch.distributed as dist
from harness import read_batches


def main() -> None:
    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    dist.init_process_group("gloo")  # as in a training process; litdata takes its rank from it
    adapter = importlib.import_module(f"adapter_{task.loader}")
    read_batches(task, adapter.Loader, pause=lambda: time.sleep(3600))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
