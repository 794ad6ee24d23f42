#!/usr/bin/env bash
# bash launch/torchrun.sh configs/mnist.yaml [key=value ...]
# All GPUs of a host; with NODES=2 RENDEZVOUS=HOST:29400 on each of two, of both. Workers that die start again.
# Change by the environment: PROCESSES (a host's), NODES, RENDEZVOUS (one host, and a port open to the others).

# Without this, workers of torch 2.13 that start again wait for a store that died with the others.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --rdzv-backend c10d --rdzv-endpoint "${RENDEZVOUS:-127.0.0.1:0}" \
    --max-restarts 3 --nnodes "${NODES:-1}" \
    --nproc-per-node "${PROCESSES:-$(python -c 'import torch; print(torch.cuda.device_count() or 1)')}" \
    -m infogan_dist.train "$@"
