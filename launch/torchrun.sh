#!/usr/bin/env bash
# bash launch/torchrun.sh configs/mnist.yaml [key=value ...]
# One process per GPU of this machine, or of two with NODES=2 RENDEZVOUS=HOST:29400 on both. Failed workers restart.
# Environment variables: PROCESSES (per machine), NODES, RENDEZVOUS (one of the machines, and a port that is open).

# Without it, workers that torch 2.13 restarts wait for a store that ended with the failed ones.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --rdzv-backend c10d --rdzv-endpoint "${RENDEZVOUS:-127.0.0.1:0}" \
    --max-restarts 3 --nnodes "${NODES:-1}" \
    --nproc-per-node "${PROCESSES:-$(python -c 'import torch; print(torch.cuda.device_count() or 1)')}" \
    -m infogan_dist.train "$@"
