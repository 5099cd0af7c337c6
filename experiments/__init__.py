"""The tables of Growing a Brain (2017), run anew through train.py."""
