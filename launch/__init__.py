"""Starts an experiment on many hosts: TPU VMs, Slurm, Kubernetes. docs/tutorials/on_a_pod.md."""
