"""Explaining image files: overlays, contact sheets, raw maps and JSON lines on disk."""
