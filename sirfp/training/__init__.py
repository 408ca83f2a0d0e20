"""What a training run needs beside its hooks: processes, steps, schedules, checkpoints, its output folder."""
