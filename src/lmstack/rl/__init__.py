"""Reinforcement learning from text: rollouts, rewards, advantages, control of the KL divergence. No Lightning."""
