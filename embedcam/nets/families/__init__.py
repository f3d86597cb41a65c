"""The families of networks that `load_network` knows, one module each; a new module here is found by itself.

The modules are imported for their names: torch and other large libraries are imported when a network is loaded.
"""
