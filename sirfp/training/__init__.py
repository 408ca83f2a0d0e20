"""Parts of a training run other than hooks: processes, steps, schedules, checkpoints, the output folder."""
