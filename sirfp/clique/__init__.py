"""Maximum edge weight cliques of given size: greedy, local search and exact (docs/method.md, section 1)."""

from .search import EXACT_LIMIT, bound, exact, greedy, local_search, value

__all__ = ["EXACT_LIMIT", "bound", "exact", "greedy", "local_search", "value"]
