"""Studies: a grid of tasks, models, criteria, budgets and seeds over the projects' `train_net.py`, and its report.

`grid` reads the study, `cells` knows what is done of it, `runner` starts runs, `work` goes through them, `results`
joins what they found, `page` writes it down. Nothing here imports a project: runs are processes of their own.
"""
