"""Other tools' interfaces on embedcam's own Grad-CAM, for code that was written for them: change the import alone."""
