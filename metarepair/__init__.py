"""How a DNN is repaired: models, inner loop, meta-gradient, repair, evaluation, reports, command line."""

__version__ = "0.1.0"
