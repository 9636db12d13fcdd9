"""The recursions of signal propagation derived from first principles, every step checked by SymPy and by numbers."""
