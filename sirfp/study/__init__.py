"""Studies: a grid of tasks, models, criteria, budgets and seeds over the projects' `train_net.py`, and its report.

`schema` checks the study's file, `grid` turns it into a list of runs, `run_folders` tells which of them are done,
`runner` starts a run, `scheduler` starts all that are left, `results` averages over seeds, `page` writes the report.
Nothing here imports a project: each run is a process of its own.
"""
