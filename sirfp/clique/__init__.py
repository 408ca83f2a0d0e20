"""Maximum edge weight cliques of given size: greedy, local search and exact (Wu et al., AAAI 2025; see `search`)."""

from .search import EXACT_LIMIT, bound, exact, greedy, local_search, value

__all__ = ["EXACT_LIMIT", "bound", "exact", "greedy", "local_search", "value"]
