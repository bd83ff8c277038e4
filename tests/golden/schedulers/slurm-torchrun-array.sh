#!/bin/bash
# Scalade: study demo, 2 cases on 2 nodes with 4 ranks each
# By hand: from the folder of this file, sbatch scalade-demo-c0ffee-0.sh
#SBATCH --job-name=scalade-demo-c0ffee-0
#SBATCH --array=0-1
#SBATCH --account=proj42
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=01:30:00
#SBATCH --output=scalade-demo-c0ffee-0.%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60

set -euo pipefail

# Relative paths in the study are meant from here
cd -- '/data/my study'

# Modules; their scripts use variables that are not set
set +u
module load cuda/12.4
module load nccl
set -u

# The site's own commands
source "$HOME/site.sh"

# Environment
export HF_HOME='/scratch/hf cache'

# Fabric
export NCCL_SOCKET_IFNAME=hsn0
export NCCL_DEBUG=WARN

# Of the supervisors; each rank's threads are set by scalade
export OMP_NUM_THREADS=1

# The case of this task
cases=(
    0123456789abcdef  # tiny-300k dp8
    fedcba9876543210  # tiny-300k fsdp8
)
case=${cases[SLURM_ARRAY_TASK_ID]}

# Where torchrun's agents meet: the first node, and a port of this job's own
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
number=$SLURM_JOB_ID
port=$((10000 + number % 20000))
while (: <> "/dev/tcp/$head/$port") 2> /dev/null; do port=$((10000 + RANDOM % 20000)); done  # it is taken

# There while a run is on: where a host crashes, the launcher may have a status of its own
export SCALADE_UNDONE_FILE=/data/results/submissions/c0ffee/scalade-demo-c0ffee-0.$SLURM_JOB_ID.undone
rm -f -- "$SCALADE_UNDONE_FILE"

# 60 s before the time limit: the ranks are asked to write a checkpoint and to stop
export SCALADE_STOP_FILE=/data/results/submissions/c0ffee/scalade-demo-c0ffee-0.$SLURM_JOB_ID.stop
rm -f -- "$SCALADE_STOP_FILE"
told=no
trap 'told=yes; touch -- "$SCALADE_STOP_FILE"' USR1
srun --mpi=none --kill-on-bad-exit=0 --no-kill --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=32 \
    --verbose apptainer exec --nv '/images/scalade 1.sif' /opt/venv/bin/python -m scalade.launch.torchrun \
    --max-restarts 0 --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id "scalade-$number" \
    --rdzv-endpoint "$head":"$port" -m scalade worker /data/results/submissions/c0ffee/demo.toml --results /data/results \
    --case "$case" --quiet &
step=$!
status=0
wait "$step" || status=$?
if [ "$told" = yes ]; then
    status=0
    wait "$step" || status=$?
fi

# What is left goes on in the next allocation
if { [ "$told" = yes ] && [ "$status" -ne 0 ]; } || [ "$status" -eq 75 ] || [ -e "$SCALADE_UNDONE_FILE" ]; then
    [ "${SLURM_RESTART_COUNT:-0}" -ge 20 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
