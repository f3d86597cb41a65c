"""What has nothing to do with heat maps: files, locks, limits, progress, processes."""
