#!/usr/bin/env bash
# From nothing to pictures: makes .venv, installs, makes shards of 5,000 real digits, trains an InfoGAN for a few
# minutes on all cores or a GPU, and draws what its codes do. Arguments are passed on to the training as key=value.
set -euo pipefail
. "$(dirname "$0")/venv.sh" digits

run=runs/quickstart
python -m infogan_dist.make_shards mnist5k --out shards/mnist5k
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(nproc)" -m infogan_dist.train configs/quickstart.yaml "$@"
python -m infogan_dist.generate $run
python -m infogan_dist.generate $run traverse=digit
python -m infogan_dist.generate $run traverse=style.0
echo "Look at $run/samples.png, and at $run/traverse_digit.png: a column is a category, a row the same noise."
