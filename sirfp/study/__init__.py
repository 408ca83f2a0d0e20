"""Studies: a grid of tasks, models, criteria, budgets and seeds over the projects' `train_net.py`, and its report.

| module | task |
| --- | --- |
| schema | checks the study's file |
| grid | turns the file into a list of runs |
| run_folders | knows which runs are done |
| runner | starts one run |
| scheduler | starts all runs that are left |
| results | averages over seeds |
| html_report | writes the report |

This package imports no project: each run is a separate process.
"""
