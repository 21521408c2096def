"""Where robots come from: MJCF models, loaded as editable `mujoco.MjSpec`."""

from assets.sources import load

__all__ = ["load"]
