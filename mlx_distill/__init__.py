"""Distil a large teacher into a small student on one Mac: collect, prepare, convert, train, compare, fuse, chat."""

__version__ = "0.2.0"
