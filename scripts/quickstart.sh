#!/usr/bin/env bash
# Installs the package into .venv, writes shards of 5,000 real digits, trains an InfoGAN for a few minutes on all
# cores or a GPU, and draws samples and traversals. The arguments (key=value) are passed on to the training.
set -euo pipefail
. "$(dirname "$0")/venv.sh" digits

run=runs/quickstart
python -m infogan_dist.make_shards mnist5k --out shards/mnist5k
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(nproc)" -m infogan_dist.train configs/quickstart.yaml "$@"
python -m infogan_dist.generate $run
python -m infogan_dist.generate $run traverse=digit
python -m infogan_dist.generate $run traverse=style.0
echo "See $run/samples.png and $run/traverse_digit.png: each column is a category, each row has the same noise."
