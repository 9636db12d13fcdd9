"""Grids of networks and verbs, cell by cell, on any executor."""
