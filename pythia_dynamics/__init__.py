"""pythia-dynamics: how the weights of language models move while they train."""

__version__ = "0.1.0"
