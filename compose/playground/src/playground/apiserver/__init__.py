"""A small Kubernetes API server over state in memory, on which kubectl works, for the kinds that the playground uses.

kmock, the mock server on PyPI, answers scripted requests for tests of operators; it has no tables, strategic merge
patches or admission, which kubectl and our controllers rely on.
"""
