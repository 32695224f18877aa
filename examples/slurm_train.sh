#!/usr/bin/env bash
# Trains on two nodes of eight GPUs under SLURM, and begins again where it stopped as often as the time limit ends it.
#
#   sbatch examples/slurm_train.sh coco_r50 /scratch/runs/coco [key=value ...]
#
# The folder of the run must be on a disk that all nodes see. `--resume` begins where there is no checkpoint, so the
# same command serves the first job and every later one.
#SBATCH --job-name=upsnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Three minutes before the limit this script (B:) is told. It asks the run to save and end, which takes a step.
#SBATCH --signal=B:USR1@180
set -euo pipefail

config=$1 output=$2
shift 2
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# torchrun takes SIGTERM, not SIGUSR1, and hands it on to its processes. It has to come from scancel: srun itself might
# end the step at a SIGTERM instead of passing it on. The step of the only srun is number 0.
is_out_of_time=false
end_run() {
  scancel --signal=TERM "$SLURM_JOB_ID.0" || true
}
trap 'is_out_of_time=true; end_run' USR1
trap end_run TERM # from scancel, or from a preemption, after which SLURM itself queues the job again if it is set up so
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150 # seconds that torchrun gives the processes to save, 30 otherwise

# Since SLURM 22.05 srun gives one core to a task unless it is told the number again.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head_node:29500" \
  -m upsnet train --config "$config" --output "$output" --resume "$@" &
run=$!

# `wait` returns early when a signal is caught: wait until the run has really gone.
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do
  status=0
  wait "$run" || status=$?
done

# A run that came to its end, failed or was cancelled is not queued again; one that ran out of time is.
if [ "$is_out_of_time" = true ] && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
