"""The data sets that embedcam reads, one module each; a new module here is found by itself."""
