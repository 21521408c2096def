"""What every test needs: a renderer without a display, and few threads, since the runners are small."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # dm_control picks its renderer when it is imported

import torch

torch.set_num_threads(1)
