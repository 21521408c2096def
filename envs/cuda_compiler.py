"""Compiles Warp's CUDA programs for another process: `python -P cuda_compiler.py`, started by `cuda_compilers`.

Calls of Warp's `build_cuda` come in on stdin, pickled; each is answered on stdout by whether it was done. No GPU is
needed, and none is used.
"""

import os
import pickle
import sys


def main() -> None:
    """Answers calls until stdin ends."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Warp prints is no answer
    import warp as wp
    from warp._src.build import build_cuda

    wp.init()
    while True:
        try:
            arguments, options = pickle.load(calls)
        except EOFError:
            return
        try:
            build_cuda(*arguments, **options)
            done = True
        except Exception:  # the one that asks then tries it by itself, and says what is wrong
            done = False
        pickle.dump(done, answers)
        answers.flush()


if __name__ == "__main__":
    main()
