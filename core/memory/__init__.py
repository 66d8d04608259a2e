"""How much memory a model needs, and what fits into a budget."""
