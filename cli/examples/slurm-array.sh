#!/bin/bash
# Ranks lists.jsonl in 8 shards, one a task, then merges them:
#
#   job=$(sbatch --parsable cli/examples/slurm-array.sh) && sbatch --dependency=afterany:$job --wrap "stratum merge rankings.jsonl"
#
# A task that is preempted or killed goes on where it was when Slurm requeues it. One that ran out of time or was cancelled
# goes on when all of this is submitted again: shards that are whole end at once. (Not with --array=3,5: to Slurm that is
# an array of two.) afterany, since a task whose lists could not all be ranked ends with 1; merge itself checks that every
# shard is there.
#SBATCH --job-name=stratum
#SBATCH --array=1-8
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --cpus-per-task=4

# exec: the signal before the time limit must reach stratum, which ends after its batch.
exec stratum rank lists.jsonl --model "$MODEL" --layer 25% --shard auto -o rankings.jsonl
