"""specgen: faster local text generation with train-free speculative decoding.

The package is put together from three folders: `core` (tokens, trees, sessions, text),
`drafters` (one drafting algorithm a file) and `cli` (the commands).
"""

__version__ = "0.1.0"
