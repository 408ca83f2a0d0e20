"""Prunes inside the training loops of other libraries (docs/own_loop.md).

One module for each library; importing it imports the library. All drive one `sirfp.Pruner`, as a loop of your own does.
"""
