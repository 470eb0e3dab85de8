"""The ``cpu`` kernel set: C++ on torch's number of threads, for float32 rows.

The package itself imports nothing, so that it can be imported where the compiled module
``_kernels`` has not been built. Arrays are checked in Python and passed to C++ by address.
"""
