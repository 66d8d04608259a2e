"""What is drafted: the next tree, how likely its tokens are, and when a draft pays."""
