"""Classifiers turned fully convolutional: class maps and boxes without gradients."""
