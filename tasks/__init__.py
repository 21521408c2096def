"""One file per robot: what it observes, what it is paid for, how it starts."""

from tasks.files import absolute
from tasks.registry import make, names, register

__all__ = ["absolute", "make", "names", "register"]
