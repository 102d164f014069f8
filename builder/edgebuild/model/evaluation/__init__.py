"""How good a model is after quantising: perplexity, divergence from its 16-bit original, and exact answers.

The `*_worker.py` files run in a process of their own with llama.cpp and the image's own engine (`edgeserve`) on its path.
"""
