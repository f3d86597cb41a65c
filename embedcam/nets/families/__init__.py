"""The network families of embedcam, one module each; new modules in this package are registered automatically.

The modules are imported to list their names. They import torch and other large libraries only to load a network.
"""
