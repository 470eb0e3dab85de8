"""Instruments: clocks, memory, energy, the GPU and the machine."""
