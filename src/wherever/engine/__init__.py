"""How a problem is computed fast: blocks, algorithms, the planner."""
