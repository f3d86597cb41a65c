"""Interfaces of other Grad-CAM packages, implemented with embedcam: only the import changes."""
