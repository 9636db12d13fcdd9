"""Gaussian averages: activations, the softmax, heads of finite size."""
