#!/usr/bin/env bash
# Build a weight database on 2 machines with 4 GPUs each:
#     sbatch examples/slurm.sh net.safetensors folder:/data/birds weights.h5
# The output must be on a file system that all machines share. After a failure, submit the same job again to resume it.
#SBATCH --job-name=embedcam-build
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
net=$1 data=$2 out=$3
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d \
    --rdzv-endpoint="$first:29500" -m embedcam build --net "$net" --data "$data" --out "$out" --workers 8 --resume
