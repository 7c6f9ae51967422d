"""The parts of ``examples/cifar10n.py``: data, features, networks, methods, training, report."""
