"""Steps during which the host does not wait for the GPU."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from infogan_dist.config.load import read_config
from infogan_dist.training.run import Run

# The first steps allocate page-locked memory and record a CUDA graph, which the driver does only while the
# GPU is idle.
FIRST_STEPS, STEPS = 4, 4


def train_without_waiting(words: list[str]) -> str | None:
    """Train a few steps in a process of its own; return what waited for the GPU, or None.

    Args:
        words: config file and overrides of the run.
    """
    # CUDA cannot be used in a forked process.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_train, words).result()


def _train(words: list[str]) -> str | None:
    run = Run(read_config(words))
    batches = run.batches()
    try:
        for step in range(FIRST_STEPS + STEPS):
            # From then on torch raises an error for every operation of which it knows that it waits.
            torch.cuda.set_sync_debug_mode("error" if step >= FIRST_STEPS else "default")
            run.engine.exchange(run.step(next(batches)))
    except RuntimeError as error:
        return f"step {step}: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        run.engine.close()
    return None
