"""Throughput and learning runs, with their committed results."""
