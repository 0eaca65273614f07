"""Kernels: Python programs that write machine code for the processor at hand."""
