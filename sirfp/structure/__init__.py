"""The structure of a network as plain data: channel groups, their cost in FLOPs and parameters, the pruning plan."""
