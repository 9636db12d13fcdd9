"""The same mathematics on a CUDA device, with kernels that make one pass over their arrays. Needs CuPy."""
