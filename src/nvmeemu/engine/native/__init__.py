"""The native engine: ordinary reads and writes at the speed of C. ``engine.py`` is its typed edge, ``*.c`` it is.

engine.h says how it works and what its parts are.
"""
