"""The data sets of embedcam, one module each; new modules in this package are registered automatically."""
