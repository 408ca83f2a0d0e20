"""Tables and figures that compare a pruned network with the dense one."""
