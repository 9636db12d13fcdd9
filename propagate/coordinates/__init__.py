"""Coordinate checks: measured curves, fitted and expected exponents, a verdict in words, a picture."""
