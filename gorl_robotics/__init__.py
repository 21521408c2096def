"""GoRL: PPO in a latent space, a flow-matching decoder from latents to actions, and what surrounds a policy."""

__version__ = "0.1.0"
