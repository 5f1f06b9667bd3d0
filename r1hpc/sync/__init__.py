"""Weights from the trainers to the engines: assembled, quantised, handed over beside each GPU, checked, stamped."""
