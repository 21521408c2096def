"""Batched physics, and the environment step on top of it."""
