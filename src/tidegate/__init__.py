"""Tidegate: Services and NetworkPolicy for Kubernetes, in eBPF, controlled through etcd."""
