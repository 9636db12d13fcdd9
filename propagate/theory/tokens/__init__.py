"""Tokens by tokens Gram matrices: any mask, any start."""
