"""The fused native kernels: one module for each framework, and the library that they share."""
