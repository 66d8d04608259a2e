"""llama.cpp: its library, models, contexts and buffers, and our own kernels for it."""
