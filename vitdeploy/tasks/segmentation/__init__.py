"""Segmentation: the class of every pixel against a mask, the mean intersection over union judged.

Masks and answers meet in the network's own frame: a mask is resized and cropped as its image is, each pixel the nearest
one, and scores are resized to it. What the crop cuts off is not judged, since the network never saw it, and the figures
depend on nothing that a caller does with the answer afterwards.
"""
