"""Tests of what needs torchvision: the real video processors of transformers.

Beside a CPU torch, the torchvision that is published does not import, and it takes transformers down with it. `make
setup` puts it apart then, into a folder that only these tests see, in a process of their own, which
tests/test_with_torchvision.py starts. By hand: python -m pytest -p tests.with_torchvision.plugin tests/with_torchvision
"""
