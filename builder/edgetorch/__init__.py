"""Prunes and distils checkpoints with PyTorch, in the interpreter of the environment `convert`.

It is started by edgebuild as `python -m edgetorch` and imports nothing of it: edgebuild itself never imports PyTorch.
"""
