"""Explain image files and write overlays, maps, contact sheets and JSON lines."""
