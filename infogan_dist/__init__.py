"""Exact training of InfoGAN (Chen et al. 2016, arXiv 1606.03657) on one process or many."""

__version__ = "0.2.0"
