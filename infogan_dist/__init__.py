"""InfoGAN (Chen et al. 2016, arXiv 1606.03657), trained exactly, on one process or many."""

__version__ = "0.1.0"
