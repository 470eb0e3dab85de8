"""Accuracy of predicted labels: shares of voxels, and Michel electrons."""
