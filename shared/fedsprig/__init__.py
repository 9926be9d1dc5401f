"""Federated specialisation of one pretrained vision model for many devices."""

__version__ = "0.1.0"
