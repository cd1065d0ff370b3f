"""A classifier for use: made from a pretrained network and labelled videos, applied to other videos."""
