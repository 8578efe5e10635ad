#!/usr/bin/env bash
# A pipeline as a SLURM job array: task K takes combination K of the sweeps. Steps that they share run once.
#
#     sbatch --array=0-$(($(invsolve run ct.toml --points | wc -l) - 1)) slurm_array.sh ct.toml
#
# Options of invsolve run follow the file; a pipeline of your own with plugins needs --trust, here and in front of --points.
#
# At the time limit SLURM sends SIGTERM a minute ahead: the task stops at a safe point and is queued again, and goes on there.
#SBATCH --job-name=invsolve
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --output=slurm-%A_%a.out
pipeline=${1:-ct.toml}
[ "$#" -gt 0 ] && shift
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
mkdir -p logs

invsolve run "$pipeline" --index "$SLURM_ARRAY_TASK_ID" --log-json "logs/$SLURM_ARRAY_TASK_ID.jsonl" "$@" &
child=$!
# Bash sees the signal; the pipeline has to.
trap 'kill -TERM "$child"' TERM
wait "$child"
code=$?
if [ "$code" -gt 128 ]; then
    # The first wait was cut short by the signal.
    wait "$child"
    code=$?
fi
if [ "$code" -eq 143 ] && command -v scontrol > /dev/null; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
