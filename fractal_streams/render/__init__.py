"""Parameters to pixels: the reference in NumPy, Numba for CPUs, Triton for GPUs. Nothing here draws a random number."""
